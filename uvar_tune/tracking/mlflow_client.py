"""One connection to MLflow: the only importer of mlflow, inside functions because the import takes seconds."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from uvar_tune.errors import ConfigError
from uvar_tune.io.uri import redact_secrets, redact_url
from uvar_tune.tracking.delivery import (
    MetricPoint,
    PermanentError,
    ReadOnlyServer,
    Refusal,
    RunNotFound,
    TransientError,
)
from uvar_tune.tracking.model_files import model_tags, write_model

# What entry points put into the environment of their process, unless it is set there: requests fail soon and are tried
# again by `tracker`, nothing is printed, and no usage data is sent.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
LOGGERS = ("mlflow", "alembic")  # they log, with a traceback, what they raise as well
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # its page opens on the runs
_MAX_METRICS, _MAX_PARAMS = 1000, 100  # a request; tags as parameters
_NETWORK_ERRORS = re.compile(
    r"Connection refused|timed out|Name or service not known|No route to host|Invalid Host header"
)
_RETRYABLE_STATUS = {401, 403, 404, 408, 429}  # HTTP client errors that are not about the content
_REFUSED = ("PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED")
# What a server answers to a call that it does not know or does not allow, while it works otherwise.
_UNSUPPORTED = (*_REFUSED, "ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED", "BAD_REQUEST", "FEATURE_DISABLED")
_HTTP_STATUS = re.compile(r"error code (\d{3})\b")


class MLflowExperiment:
    """The runs of one experiment; every method raises `TransientError` or `PermanentError`.

    Args:
        uri: of the server or database; credentials are never displayed.
        experiment: name of the experiment, created if missing.
        artifact_root: where artifacts are stored if ``uri`` is a database (a server has its own place).
    """

    def __init__(self, uri: str, experiment: str, artifact_root: Path):
        self._uri = uri
        # A database that moves with run.root is the same server.
        self.name = redact_url(uri).replace(str(artifact_root.parent), "run.root")
        try:
            from mlflow import MlflowClient

            self._client = MlflowClient(uri)
            self.experiment_id = self._find_experiment(experiment, artifact_root)
        except Exception as error:  # stores raise whatever their drivers raise
            kind = ReadOnlyServer if _is_refusal(error, _REFUSED) else TransientError
            raise kind(self._reason(error)) from None
        self.version = self._server_version()
        for key, value in _EXPERIMENT_TAGS.items():
            with contextlib.suppress(PermanentError):  # it is about the looks only
                self.set_experiment_tag(key, value)

    @property
    def _is_server(self) -> bool:
        return self._uri.startswith(("http://", "https://"))

    def _find_experiment(self, name: str, artifact_root: Path) -> str:
        from mlflow.exceptions import MlflowException

        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            location = None if self._is_server else str(artifact_root)
            try:
                return self._client.create_experiment(name, artifact_location=location)
            except MlflowException:  # created by another study at the same time
                experiment = self._client.get_experiment_by_name(name)
                if experiment is None:
                    raise
        if self._uri.startswith("sqlite:"):
            _require_artifact_root(experiment.artifact_location)
        if experiment.lifecycle_stage == "deleted":
            self._client.restore_experiment(experiment.experiment_id)
        return experiment.experiment_id

    def _server_version(self) -> tuple[int, int] | None:
        """(major, minor) of the server's MLflow, of this one for a database; None if the server does not say."""
        import mlflow

        text = mlflow.__version__
        if self._is_server:
            from mlflow.utils.credentials import get_default_host_creds
            from mlflow.utils.rest_utils import http_request

            try:
                text = http_request(get_default_host_creds(self._uri), "/version", "GET").text
            except Exception:  # whatever its transport raises
                return None
        match = re.match(r"(\d+)\.(\d+)", text)
        return (int(match.group(1)), int(match.group(2))) if match else None

    def set_experiment_tag(self, key: str, value: str) -> None:
        """Set a tag of the experiment, unless it has this value.

        Raises:
            PermanentError: also if the server does not allow tags of experiments.
        """
        with self._translated_errors(optional=True):
            if self._client.get_experiment(self.experiment_id).tags.get(key) != value:
                self._client.set_experiment_tag(self.experiment_id, key, value)

    def log_datasets(self, run_id: str, datasets: Sequence[dict[str, Any]]) -> None:
        """Log the data sets of a run as its inputs; see `RunLogger.log_datasets`.

        Raises:
            PermanentError: also if the server does not know inputs.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = [
            DatasetInput(
                Dataset(
                    name=dataset["name"],
                    digest=dataset["digest"],
                    source_type="local",
                    source=json.dumps({"uri": dataset["source"]}),
                    profile=json.dumps({"num_rows": dataset["images"], **dataset["profile"]}),
                ),
                [InputTag("mlflow.data.context", dataset["context"])],
            )
            for dataset in datasets
        ]
        with self._translated_errors(optional=True):
            self._client.log_inputs(run_id, inputs)

    def run_exists(self, run_id: str) -> bool:
        """Whether the run exists and has not been deleted."""
        try:
            with self._translated_errors():
                return self._client.get_run(run_id).info.lifecycle_stage == "active"
        except RunNotFound:
            return False

    def find_runs(self, tags: dict[str, str]) -> list[str]:
        """Ids of the runs with these tags, the oldest first."""
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        with self._translated_errors():
            runs = self._client.search_runs([self.experiment_id], query, order_by=["attributes.start_time ASC"])
        return [run.info.run_id for run in runs]

    def create_run(self, name: str, tags: dict[str, str], time_ms: int) -> str:
        """Create a run; its id."""
        with contextlib.suppress(KeyError, OSError):  # a container without an entry for its user
            tags = {"mlflow.user": getpass.getuser(), **tags}
        with self._translated_errors():
            return self._client.create_run(self.experiment_id, start_time=time_ms, tags=tags, run_name=name).info.run_id

    def delete_run(self, run_id: str) -> None:
        """Delete a run."""
        with self._translated_errors():
            self._client.delete_run(run_id)

    def get_data(self, run_id: str) -> tuple[dict[str, str], dict[str, float]]:
        """Parameters and latest metrics of a run."""
        with self._translated_errors():
            data = self._client.get_run(run_id).data
        return data.params, data.metrics

    def log_batch(
        self, run_id: str, points: Sequence[MetricPoint], params: dict[str, str], tags: dict[str, str]
    ) -> list[Refusal]:
        """Log metrics, parameters and tags.

        Returns:
            What the server refuses of them, one by one; the rest is logged.
        """
        from mlflow.entities import Metric, Param, RunTag

        metrics = [Metric(point.key, point.value, point.time_ms, point.step) for point in points]
        parameters, run_tags = [Param(*item) for item in params.items()], [RunTag(*item) for item in tags.items()]
        if (
            len(metrics) + len(parameters) + len(run_tags) <= _MAX_METRICS
            and max(len(params), len(tags)) <= _MAX_PARAMS
        ):
            with contextlib.suppress(PermanentError), self._translated_errors():  # what is refused is found below
                self._client.log_batch(run_id, metrics, parameters, run_tags)
                return []
        refusals = self._log(run_id, "metric", metrics, _MAX_METRICS)
        refusals += self._log(run_id, "param", parameters, _MAX_PARAMS)
        return refusals + self._log(run_id, "tag", run_tags, _MAX_PARAMS)

    def _log(self, run_id: str, kind: str, items: list[Any], at_most: int) -> list[Refusal]:
        """Log items of one kind; a batch that is refused is halved until the refused items are alone."""
        if not items:
            return []
        if len(items) <= at_most:
            try:
                with self._translated_errors():
                    self._client.log_batch(run_id, **{f"{kind}s": items})
                return []
            except PermanentError as error:
                if len(items) == 1:
                    return [Refusal(kind, items[0].key, str(error))]
            at_most = (len(items) + 1) // 2
        refusals = []
        for start in range(0, len(items), at_most):
            refusals += self._log(run_id, kind, items[start : start + at_most], at_most)
        return refusals

    def set_status(self, run_id: str, status: str, time_ms: int) -> None:
        """Set the status of a run (RUNNING, FINISHED, FAILED, KILLED)."""
        with self._translated_errors():
            if status == "RUNNING":
                self._client.update_run(run_id, status=status)
            else:
                self._client.set_terminated(run_id, status, time_ms)

    def upload(self, run_id: str, path: Path, folder: str) -> None:
        """Upload a file, or a directory under its own name, into a folder of the run's artifacts."""
        if not os.access(path, os.R_OK):
            raise PermanentError(f"{path} cannot be read")
        with self._translated_errors():
            if self._is_server:
                self._require_artifact_store(run_id)
            if path.is_dir():
                self._client.log_artifacts(run_id, str(path), f"{folder}/{path.name}")
            else:
                self._client.log_artifact(run_id, str(path), folder or None)

    def log_model(self, run_id: str, checkpoint: Path, name: str, sampling: Mapping[str, float]) -> str:
        """Log a checkpoint as a model of a run, unless it is there.

        Args:
            run_id: of the trial.
            checkpoint: its directory.
            name: of the model.
            sampling: settings of the sampler, by name.

        Returns:
            The id of the model.

        Raises:
            PermanentError: also if the server does not know models of runs (MLflow 2), or a file is missing.
        """
        from mlflow.entities import LoggedModelOutput

        try:
            tags = model_tags(checkpoint)
            with self._translated_errors(optional=True):
                if self._is_server:
                    self._require_artifact_store(run_id)
                model = self._find_model(run_id, tags)
                if model is not None and str(model.status).endswith("READY"):
                    return model.model_id
                model = model or self._client.create_logged_model(
                    self.experiment_id, name, run_id, tags=tags, model_type="VAR"
                )
                with tempfile.TemporaryDirectory(dir=checkpoint.parent.parent, prefix=".model-") as directory:
                    scratch = Path(directory)
                    write_model(
                        scratch / "model", checkpoint, sampling, model_id=model.model_id, run_id=run_id, scratch=scratch
                    )
                    self._client.log_model_artifacts(model.model_id, str(scratch / "model"))
                self._client.finalize_logged_model(model.model_id, "READY")
                self._client.log_outputs(run_id, [LoggedModelOutput(model.model_id, int(tags["uvar.images"]))])
                return model.model_id
        except ConfigError as error:
            raise PermanentError(str(error)) from None

    def _find_model(self, run_id: str, tags: dict[str, str]) -> Any:
        """The model of a run with these tags; None if there is none."""
        models = self._client.search_logged_models([self.experiment_id], f"source_run_id = '{run_id}'")
        return next((model for model in models if tags.items() <= model.tags.items()), None)

    def register(self, name: str, model_id: str, run_id: str, tags: dict[str, str], description: str) -> str:
        """Register a logged model as a new version; the version."""
        from mlflow.exceptions import MlflowException

        with self._translated_errors(optional=True):
            try:
                self._client.create_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            source = self._client.get_logged_model(model_id).artifact_location
            version = self._client.create_model_version(
                name, source, run_id, tags=tags, description=description, model_id=model_id
            )
        return str(version.version)

    def _require_artifact_store(self, run_id: str) -> None:
        """Refuse a server that names a directory of its own machine: MLflow would write it on this one."""
        root = _local_path(self._client.get_experiment(self.experiment_id).artifact_location)
        if root is not None and not root.parent.parent.exists():
            raise TransientError(
                f"the server stores artifacts in {root}, which does not exist on this machine: "
                "start it with --artifacts-destination"
            )

    @contextlib.contextmanager
    def _translated_errors(self, *, optional: bool = False) -> Iterator[None]:
        """Errors of MLflow as ours; ``optional``: a server that does not support the call works otherwise."""
        from mlflow.exceptions import MlflowException

        try:
            yield
        except (TransientError, PermanentError, ConfigError):
            raise
        except FileNotFoundError as error:
            raise PermanentError(f"{error.filename} is gone") from None
        except MlflowException as error:
            reason = self._reason(error)
            if error.error_code == "RESOURCE_DOES_NOT_EXIST" or "'active' state" in str(error):
                raise RunNotFound(reason) from None
            if error.error_code == "INVALID_PARAMETER_VALUE" or (optional and _is_refusal(error, _UNSUPPORTED)):
                raise PermanentError(reason) from None
            raise (ReadOnlyServer if _is_refusal(error, _REFUSED) else TransientError)(reason) from None
        except Exception as error:  # artifact stores raise whatever their libraries raise
            status = getattr(getattr(error, "response", None), "status_code", None)
            if status and 400 <= status < 500 and status not in _RETRYABLE_STATUS:
                raise PermanentError(self._reason(error)) from None
            raise TransientError(self._reason(error)) from None

    def _reason(self, error: Exception) -> str:
        known = _NETWORK_ERRORS.search(str(error))
        return known.group() if known else redact_secrets(str(error), self._uri) or type(error).__name__


def _is_refusal(error: Exception, codes: Sequence[str]) -> bool:
    """Whether an error of MLflow has one of these codes, or an HTTP status that means the same."""
    if getattr(error, "error_code", None) in codes:
        return True
    status = _HTTP_STATUS.search(str(error))
    refused = {"401", "403"} if codes == _REFUSED else {"400", "401", "403", "404", "405", "501"}
    return status is not None and status.group(1) in refused


def _local_path(location: str) -> Path | None:
    """The directory behind an artifact location; None if it is not a local path."""
    parsed = urlparse(location)
    return Path(unquote(parsed.path)) if parsed.scheme in ("", "file") else None


def _require_artifact_root(location: str) -> None:
    """Raise FileNotFoundError if the directory of the artifacts is gone: MLflow's own database keeps its path."""
    root = _local_path(location)
    if root is not None and root.is_absolute() and not root.parent.exists():
        raise FileNotFoundError(
            f"its artifacts belong below {root.parent}, which is gone: if run.root was moved, link the old "
            "path to the new one, or delete mlflow.db and `sync --rebuild` each study"
        )
