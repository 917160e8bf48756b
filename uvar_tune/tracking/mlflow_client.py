"""One connection to MLflow, in the terms of delivery (this room is the only importer of mlflow, and late: it costs seconds)."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from pathlib import Path
from urllib.parse import unquote

from uvar_tune.io.uri import redact_secrets, redact_url
from uvar_tune.tracking.content import InferencePointSearch
from uvar_tune.tracking.delivery import Away, Rejected

_BATCH, _FEW = 1000, 100  # metrics, and parameters and tags, a request
# A request fails soon, and is tried again by us, later; nothing is printed and nobody else is told.
_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


class Server:
    """Runs of one experiment. Every method raises `Away` (try again later) or `Rejected` (no use)."""

    def __init__(self, uri: str, experiment: str, artifact_root: Path):
        self._uri, self.name = (
            uri,
            redact_url(uri).replace(str(artifact_root.parent), "run.root"),
        )  # one that moves with it stays itself
        for key, value in _SETTINGS.items():
            os.environ.setdefault(key, value)
        try:
            from mlflow import MlflowClient

            for name in (
                "mlflow",
                "alembic",
            ):  # what a store raises it also logs, with its traceback; we say it once, in a line
                logging.getLogger(name).setLevel(logging.CRITICAL)
            self._client = MlflowClient(uri)
            self._experiment = self._find_experiment(experiment, artifact_root)
        except Exception as error:  # stores raise whatever their drivers raise
            raise Away(self._reason(error)) from None

    def _find_experiment(self, name: str, artifact_root: Path) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is None:
            database = not self._uri.startswith(("http://", "https://"))
            try:
                return self._client.create_experiment(name, artifact_location=str(artifact_root) if database else None)
            except MlflowException:  # made by another study in the same moment
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        if self._uri.startswith("sqlite:"):
            _require_place(found.artifact_location)
        if found.lifecycle_stage == "deleted":
            self._client.restore_experiment(found.experiment_id)
        return found.experiment_id

    def exists(self, run_id: str) -> bool:
        try:
            with self._translated():
                return self._client.get_run(run_id).info.lifecycle_stage == "active"
        except _Gone:
            return False

    def find(self, tags: dict[str, str]) -> list[str]:
        """Ids of the runs with these tags, the oldest first."""
        wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        with self._translated():
            runs = self._client.search_runs([self._experiment], wanted, order_by=["attributes.start_time ASC"])
        return [run.info.run_id for run in runs]

    def make(self, name: str, tags: dict[str, str], time_ms: int) -> str:
        with self._translated():
            return self._client.create_run(self._experiment, start_time=time_ms, tags=tags, run_name=name).info.run_id

    def delete(self, run_id: str) -> None:
        with self._translated():
            self._client.delete_run(run_id)

    def recorded(self, run_id: str) -> tuple[dict[str, str], dict[str, float]]:
        """(parameters, latest metrics) that the run has."""
        with self._translated():
            data = self._client.get_run(run_id).data
        return data.params, data.metrics

    def batch(self, run_id: str, points: InferencePointSearch, params: dict[str, str], tags: dict[str, str]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        metrics = [Metric(*point) for point in points]
        described = [Param(key, value) for key, value in params.items()]
        tagged = [RunTag(key, value) for key, value in tags.items()]
        with self._translated():
            for at in range(0, len(metrics), _BATCH):
                self._client.log_batch(run_id, metrics=metrics[at : at + _BATCH])
            for at in range(0, max(len(described), len(tagged)), _FEW):
                self._client.log_batch(run_id, params=described[at : at + _FEW], tags=tagged[at : at + _FEW])

    def status(self, run_id: str, status: str, time_ms: int) -> None:
        with self._translated():
            if status == "RUNNING":
                self._client.update_run(run_id, status=status)
            else:
                self._client.set_terminated(run_id, status, time_ms)

    def upload(self, run_id: str, path: Path, folder: str) -> None:
        if not os.access(path, os.R_OK):
            raise Rejected(f"{path} cannot be read")
        with self._translated():
            if path.is_dir():
                self._client.log_artifacts(run_id, str(path), f"{folder}/{path.name}")
            else:
                self._client.log_artifact(run_id, str(path), folder or None)

    @contextlib.contextmanager
    def _translated(self):
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            reason = self._reason(error)
            if error.error_code == "RESOURCE_DOES_NOT_EXIST" or "'active' state" in str(error):
                raise _Gone(reason) from None
            if error.error_code == "INVALID_PARAMETER_VALUE":
                raise Rejected(reason) from None
            raise Away(reason) from None
        except Exception as error:  # artifact stores raise whatever their libraries raise
            raise Away(self._reason(error)) from None

    def _reason(self, error: Exception) -> str:
        text = redact_secrets(str(error), self._uri)
        known = re.search(
            r"Connection refused|timed out|Name or service not known|No route to host|Invalid Host header", text
        )
        return known.group() if known else text or type(error).__name__


def _require_place(location: str) -> None:
    """FileNotFoundError where artifacts belong to a directory that is gone: MLflow's own database keeps the path."""
    place = Path(unquote(location.removeprefix("file://")) if location.startswith("file://") else location)
    if place.is_absolute() and not place.parent.exists():
        raise FileNotFoundError(
            f"its artifacts belong below {place.parent}, which is gone: where run.root was moved, link the old "
            "path to the new one, or delete mlflow.db and `sync --rebuild` each study"
        )


class _Gone(Away):
    """The run or the experiment is not there any more: a new connection finds or makes it."""
