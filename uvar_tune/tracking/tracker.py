"""MLflow as a view of a study, updated by background threads of the driver.

A call appends one operation to the outbox on disk and returns; threads deliver from there. Nothing blocks or raises
into the caller, a server that is down costs nothing but its own view, and what a dead driver leaves behind is delivered
by the next one, or by `uvar-tune sync`.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import threading
import time
from pathlib import Path
from typing import Any, Literal, Protocol

from uvar_tune.errors import first_line
from uvar_tune.io.uri import redact_url
from uvar_tune.tracking.delivery import ArtifactUploader, Delivery, ReadOnlyServer, RunNotFound, TransientError
from uvar_tune.tracking.mlflow_client import MLflowExperiment
from uvar_tune.tracking.outbox import STUDY, DeliveryState, Outbox

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT_SEC = 60.0  # for what is pending at the end of a command
STOP_TIMEOUT_SEC = 15.0  # the same if the user stops the command
_POLL_SEC = 5.0  # between two looks at the metrics logs
_MAX_PAUSE_SEC = 30.0  # between two tries of a server that does not answer
_MAX_PARAM_LENGTH = 6000  # characters

RunStatus = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]


class RunLogger(Protocol):
    """Logs a study as a parent run, and its trials as child runs."""

    def start_study(self, params: dict[str, Any], tags: dict[str, Any], *, timestamp: float | None = None) -> None:
        """Create or find the parent run.

        Args:
            params: parameters of the study.
            tags: tags of its run.
            timestamp: here and below, when it happened (s since the epoch); now by default.
        """

    def start_trial(
        self,
        number: int | str,
        directory: str | Path,
        params: dict[str, Any],
        tags: dict[str, Any],
        *,
        name: str | None = None,
        phase: str | None = None,
        timestamp: float | None = None,
    ) -> None:
        """Create or find the trial's run, and follow its metrics log and samples until `finish_trial`.

        Args:
            number: of the trial; of a replicate, phase and number (``noise/0``).
            directory: the trial directory.
            params: parameters of the trial.
            tags: tags of its run.
            name: name of its run.
            phase: the phase whose run becomes the parent; None for the study's run.
            timestamp: see `start_study`.
        """

    def finish_trial(
        self,
        number: int | str,
        status: RunStatus,
        metrics: dict[str, float] | None = None,
        params: dict[str, Any] | None = None,
        *,
        timestamp: float | None = None,
    ) -> None:
        """End the trial's run.

        Args:
            number: see `start_trial`.
            status: of the run.
            metrics: the final metrics; those that its log has are not repeated.
            params: what only the trial decides, such as the selected CFG scale.
            timestamp: see `start_study`.
        """

    def set_tags(self, number: int | str | None, tags: dict[str, Any]) -> None:
        """Set tags of the run of a trial (None: of the study), such as its verdict."""

    def save_view(self, name: str, metric: str, direction: str, columns: list[str], axes: list[str]) -> None:
        """Save a view of the trials of the search on MLflow's page, best first.

        Args:
            name: of the view.
            metric: by which trials are ordered.
            direction: minimize or maximize.
            columns: such as ``metrics.`fid```, in order.
            axes: parameters that its charts show, by dotted name.
        """

    def log_datasets(self, datasets: list[dict[str, Any]]) -> None:
        """Log the data sets of the study, which are those of every trial that starts from now on.

        Args:
            datasets: for each its name, digest, context (training or validation), source (path), images (how many) and
                profile (further facts).
        """

    def log_study_metrics(self, values: dict[str, float]) -> None:
        """Log metrics of the parent run; those it has already are not repeated."""

    def log_artifact(self, number: int | str | None, path: str | Path, folder: str) -> None:
        """Upload a file, or a directory under its own name, to the run of a trial (None: of the study)."""

    def log_model(self, number: int, checkpoint: str | Path, sampling: dict[str, float]) -> None:
        """Log a trial's checkpoint, with its tokenizer, as a model that `mlflow.pyfunc.load_model` loads.

        Args:
            number: of the trial.
            checkpoint: its directory.
            sampling: the settings of the sampler that the trial selected, such as cfg_scale.
        """

    def finish_study(self, status: RunStatus, *, timestamp: float | None = None) -> None:
        """End the parent run and those of the phases."""


class Tracker(RunLogger, Protocol):
    """A `RunLogger` with a server behind it."""

    def run_id(self, number: int | str | None) -> str | None:
        """The id of a run (None: of the study) as soon as the server has assigned it."""

    def close(self, timeout_sec: float = CLOSE_TIMEOUT_SEC) -> bool:
        """Deliver what can be delivered in this time; whether nothing is pending."""


class NullTracker:
    """Tracks nothing."""

    def start_study(self, params, tags, *, timestamp=None) -> None:
        """Ignore."""

    def start_trial(self, number, directory, params, tags, *, name=None, phase=None, timestamp=None) -> None:
        """Ignore."""

    def finish_trial(self, number, status, metrics=None, params=None, *, timestamp=None) -> None:
        """Ignore."""

    def set_tags(self, number, tags) -> None:
        """Ignore."""

    def save_view(self, name, metric, direction, columns, axes) -> None:
        """Ignore."""

    def log_datasets(self, datasets) -> None:
        """Ignore."""

    def log_study_metrics(self, values) -> None:
        """Ignore."""

    def log_artifact(self, number, path, folder) -> None:
        """Ignore."""

    def log_model(self, number, checkpoint, sampling) -> None:
        """Ignore."""

    def finish_study(self, status, *, timestamp=None) -> None:
        """Ignore."""

    def run_id(self, number) -> None:
        """No run has an id."""

    def close(self, timeout_sec: float = CLOSE_TIMEOUT_SEC) -> bool:
        """Nothing is ever pending."""
        return True


class OutboxTracker:
    """Turns the calls of a `RunLogger` into operations for an outbox.

    Args:
        outbox: of the study; paths are stored relative to it.
    """

    def __init__(self, outbox: Outbox):
        self._outbox = outbox

    def start_study(self, params: dict[str, Any], tags: dict[str, Any], *, timestamp: float | None = None) -> None:
        """See `RunLogger`."""
        self._append("start_study", timestamp, params=_strings(params), tags=_strings(tags))

    def start_trial(  # noqa: PLR0913 - the interface of RunLogger
        self,
        number: int | str,
        directory: str | Path,
        params: dict[str, Any],
        tags: dict[str, Any],
        *,
        name: str | None = None,
        phase: str | None = None,
        timestamp: float | None = None,
    ) -> None:
        """See `RunLogger`."""
        place = {"number": number, "directory": self._outbox.relative(directory), "name": name, "phase": phase}
        self._append("start_trial", timestamp, **place, params=_strings(params), tags=_strings(tags))

    def finish_trial(
        self,
        number: int | str,
        status: RunStatus,
        metrics: dict[str, float] | None = None,
        params: dict[str, Any] | None = None,
        *,
        timestamp: float | None = None,
    ) -> None:
        """See `RunLogger`."""
        fields = {"number": number, "status": status, "metrics": metrics, "params": _strings(params or {})}
        self._append("finish_trial", timestamp, **fields)

    def set_tags(self, number: int | str | None, tags: dict[str, Any]) -> None:
        """See `RunLogger`."""
        self._append("set_tags", None, number=number, tags=_strings(tags))

    def save_view(self, name: str, metric: str, direction: str, columns: list[str], axes: list[str]) -> None:
        """See `RunLogger`."""
        self._append("save_view", None, name=name, metric=metric, direction=direction, columns=columns, axes=axes)

    def log_datasets(self, datasets: list[dict[str, Any]]) -> None:
        """See `RunLogger`."""
        self._append("log_datasets", None, datasets=datasets)

    def log_study_metrics(self, values: dict[str, float]) -> None:
        """See `RunLogger`."""
        self._append("log_study_metrics", None, values=values)

    def log_artifact(self, number: int | str | None, path: str | Path, folder: str) -> None:
        """See `RunLogger`."""
        self._append("log_artifact", None, number=number, path=self._outbox.relative(path), folder=folder)

    def log_model(self, number: int, checkpoint: str | Path, sampling: dict[str, float]) -> None:
        """See `RunLogger`."""
        path = self._outbox.relative(checkpoint)
        self._append("log_model", None, number=number, path=path, sampling=sampling)

    def finish_study(self, status: RunStatus, *, timestamp: float | None = None) -> None:
        """See `RunLogger`."""
        self._append("finish_study", timestamp, status=status)

    def _append(self, operation: str, timestamp: float | None, **fields: Any) -> None:
        self._take({"op": operation, "time": time.time() if timestamp is None else timestamp, **fields})

    def _take(self, operation: dict[str, Any]) -> None:
        raise NotImplementedError


class BufferedRunLogger(OutboxTracker):
    """Collects operations in a list, for an outbox that is to be replaced."""

    def __init__(self, outbox: Outbox):
        super().__init__(outbox)
        self.operations: list[dict[str, Any]] = []

    def _take(self, operation: dict[str, Any]) -> None:
        self.operations.append(operation)


class MLflowTracker(OutboxTracker):
    """Tracks a study in MLflow. Several trackers may share an outbox; one of them delivers.

    Args:
        tracking_uri: of the server or database; credentials in it are neither displayed nor stored.
        experiment: name of the experiment.
        study: name of the study.
        artifact_root: where artifacts are stored if the URI is that of a database.
        outbox_dir: ``run.root/NAME/mlflow``.
    """

    def __init__(
        self, *, tracking_uri: str, experiment: str, study: str, artifact_root: str | Path, outbox_dir: str | Path
    ):
        super().__init__(Outbox(outbox_dir))
        self._uri, self._experiment, self._study = tracking_uri, experiment, study
        self._artifact_root = Path(artifact_root)
        self._wake, self._closing, self._stopped = threading.Event(), threading.Event(), threading.Event()
        self._metadata_done = threading.Event()  # nothing more will be queued for upload
        self._start_lock, self._state_lock = threading.Lock(), threading.RLock()
        self._thread: threading.Thread | None = None
        self._upload_thread: threading.Thread | None = None
        self._state: DeliveryState | None = None  # loaded under the lock of the outbox
        self._delivery: Delivery | None = None
        self._metadata = _Availability(f"MLflow at {redact_url(tracking_uri)}")
        self._artifacts = _Availability(f"the artifact store of MLflow at {redact_url(tracking_uri)}")
        self._disk_full = False

    def run_id(self, number: int | str | None) -> str | None:
        """See `Tracker`."""
        return self._outbox.load_state().runs.get(STUDY if number is None else str(number))

    def close(self, timeout_sec: float = CLOSE_TIMEOUT_SEC) -> bool:
        """See `Tracker`; a server that does not answer is tried once more."""
        if self._thread is None and not any(self._outbox.pending()):
            return True
        self._start()
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout_sec)
        self._stopped.set()
        self._wake.set()
        pending = self._outbox.pending()
        if any(pending):
            same = " and the same MLFLOW_TRACKING_URI" if "MLFLOW_TRACKING_URI" in os.environ else ""
            root = shlex.quote(str(self._outbox.directory.parent.parent))
            logger.warning(
                f"MLflow: not sent: {pending}. They are kept; send them later with "
                f"`uvar-tune sync --study {self._study} --root {root}`{same}"
            )
        return not any(pending)

    def _take(self, operation: dict[str, Any]) -> None:
        refusal = self._outbox.append(operation)
        if refusal and not self._disk_full:
            logger.warning(
                f"MLflow: {self._outbox.directory} cannot be written ({refusal}); operations are buffered in memory"
            )
        self._disk_full = refusal is not None
        self._start()
        self._wake.set()

    def _start(self) -> None:
        with self._start_lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="mlflow", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        """Deliver until the tracker is closed; in the end release the lock, which both lanes need."""
        try:
            self._deliver()
        finally:
            self._metadata_done.set()
            self._wake.set()
            if self._upload_thread is not None:
                self._upload_thread.join()
            self._outbox.release_lock()

    def _deliver(self) -> None:
        """The metadata lane."""
        pause_sec = 1.0
        while not self._stopped.is_set():
            closing = self._closing.is_set()  # read first: this round sees whatever came before it
            self._wake.clear()
            try:
                if self._outbox.acquire_lock():
                    self._round()
                    self._metadata.restored("what it missed has been sent")
                    pause_sec = 1.0
                    if closing and not any(self._outbox.pending()[:2]):
                        return
                    self._wake.wait(0.1 if closing else _POLL_SEC)
                elif closing and not any(self._outbox.pending()):
                    return  # another tracker of this study has delivered everything
                else:
                    self._wake.wait(0.5)
            except Exception as error:  # also a log that cannot be read for now: the thread must outlive it
                self._delivery = None
                self._metadata.lost(error, "the study continues; what MLflow misses is kept and sent later")
                if closing:
                    return
                self._closing.wait(pause_sec)
                pause_sec = min(2 * pause_sec, _MAX_PAUSE_SEC)

    def _round(self) -> None:
        if self._delivery is None:
            self._state = self._state or self._outbox.load_state()
            server = self._connect()
            self._delivery = Delivery(self._outbox, server, self._study, self._state, self._state_lock)
        self._outbox.flush()
        self._delivery.operations(self._stopped.is_set)
        self._delivery.metrics(self._stopped.is_set)
        if self._state.uploads and self._upload_thread is None:
            self._upload_thread = threading.Thread(target=self._upload, name="mlflow-artifacts", daemon=True)
            self._upload_thread.start()

    def _connect(self) -> MLflowExperiment:
        return MLflowExperiment(self._uri, self._experiment, self._artifact_root)

    def _is_reachable(self) -> bool:
        try:
            self._connect()
        except TransientError:
            return False
        return True

    def _upload(self) -> None:
        """The artifact lane."""
        server, pause_sec = None, 1.0
        while not self._stopped.is_set():
            finishing = self._metadata_done.is_set()
            try:
                server = server or self._connect()
                ArtifactUploader(self._outbox, server, self._state, self._state_lock).upload(self._stopped.is_set)
                self._artifacts.restored("the artifacts it missed have been sent")
                pause_sec = 1.0
                if finishing:
                    return
                self._metadata_done.wait(1.0)
            except Exception as error:  # the thread must outlive it
                server = None
                if isinstance(error, RunNotFound):
                    self._delivery = None  # a new one creates the run
                elif self._is_reachable():  # else the metadata lane reports it
                    self._artifacts.lost(error, "metrics and parameters are not affected; artifacts are sent later")
                if finishing:
                    return
                self._metadata_done.wait(pause_sec)
                pause_sec = min(2 * pause_sec, _MAX_PAUSE_SEC)


class _Availability:
    """Reports once that a server or store is lost, and once that it is back."""

    def __init__(self, name: str):
        self._name, self.available = name, True

    def lost(self, error: Exception, consequence: str) -> None:
        if self.available:
            problem = "does not answer" if isinstance(error, TransientError) else f"fails with {type(error).__name__}"
            if isinstance(error, ReadOnlyServer):
                problem = "may not be written by this user"
            logger.warning(f"{self._name} {problem} ({first_line(error)}); {consequence}")
        self.available = False

    def restored(self, result: str) -> None:
        if not self.available:
            logger.info(f"{self._name} answers again; {result}")
        self.available = True


def _strings(values: dict[str, Any]) -> dict[str, str]:
    return {
        key: (json.dumps(value) if isinstance(value, (list, tuple, dict)) else str(value))[:_MAX_PARAM_LENGTH]
        for key, value in values.items()
    }
