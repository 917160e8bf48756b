"""Delivery of a study's outbox, metrics logs and artifacts to a tracking server; every step can be repeated safely.

A run is found by its id, else by its tags, else created. Parameters and study metrics that the server has are not sent
again; repeated metrics of a trial are dropped by the server (same key, step, value and time).

There are two lanes: `Delivery` sends parameters, metrics, tags and states; `ArtifactUploader` sends the artifacts that
`Delivery` queues, in a thread of its own. Neither waits for the other.

The values of a metrics log get the names of `metric_names`, step = images seen. The scores at each inference point
become a table, the artifact `PROFILE`, when the trial ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from uvar_tune.io.atomic import write_text_atomic
from uvar_tune.tracking.model_files import model_name
from uvar_tune.tracking.outbox import STUDY, DeliveryState, Outbox, TrialProgress, Upload
from uvar_tune.tracking.presentation import SEARCH, fill, trial_description
from uvar_tune.tracking.run_content import (
    MetricPoint,
    milliseconds,
    missing_points,
    new_images,
    new_points,
    profile_table,
)
from uvar_tune.tracking.saved_view import MIN_SERVER, plain_page, view_key, view_page, view_state, view_tag

logger = logging.getLogger(__name__)

PROFILE = "scores_over_cfg.json"  # in the split format of pandas, which MLflow's page shows as a table
_MAX_FAILED_UPLOADS = 2  # in a row, of different files: then the store is the reason, not the file


class Refusal(NamedTuple):
    """One metric, parameter or tag that the server does not accept."""

    kind: str
    key: str
    reason: str


class TransientError(Exception):
    """The server cannot be reached or does not work now: try again later."""


class ReadOnlyServer(TransientError):
    """The server works, but this user may not write."""


class RunNotFound(TransientError):
    """The run or its experiment does not exist any more: a new connection finds or creates it."""


class PermanentError(Exception):
    """The server refuses this request for its content: trying again is no use."""


class TrackingServer(Protocol):
    """The calls that delivery needs; every method raises `TransientError` or `PermanentError`."""

    name: str
    experiment_id: str
    version: tuple[int, int] | None

    def set_experiment_tag(self, key: str, value: str) -> None:
        """Set a tag of the experiment."""

    def log_datasets(self, run_id: str, datasets: Sequence[dict[str, Any]]) -> None:
        """Log the data sets of a run as its inputs."""

    def run_exists(self, run_id: str) -> bool:
        """Whether the run exists and has not been deleted."""

    def find_runs(self, tags: dict[str, str]) -> list[str]:
        """Ids of the runs with these tags, the oldest first."""

    def create_run(self, name: str, tags: dict[str, str], time_ms: int) -> str:
        """Create a run; its id."""

    def delete_run(self, run_id: str) -> None:
        """Delete a run."""

    def get_data(self, run_id: str) -> tuple[dict[str, str], dict[str, float]]:
        """Parameters and latest metrics of a run."""

    def log_batch(
        self, run_id: str, points: Sequence[MetricPoint], params: dict[str, str], tags: dict[str, str]
    ) -> list[Refusal]:
        """Log metrics, parameters and tags; what the server refuses of them, the rest is logged."""

    def set_status(self, run_id: str, status: str, time_ms: int) -> None:
        """Set the status of a run (RUNNING, FINISHED, FAILED, KILLED)."""

    def log_model(self, run_id: str, checkpoint: Path, name: str, sampling: dict[str, float]) -> str:
        """Log a checkpoint as a model of a run; its id."""

    def upload(self, run_id: str, path: Path, folder: str) -> None:
        """Upload a file, or a directory under its own name, into a folder of the run's artifacts."""


class Delivery:
    """The metadata lane of one connection: call `operations` and `metrics` in turn; a `TransientError` ends it.

    Args:
        outbox: of the study; this process holds its lock.
        server: the connection.
        study: name of the study.
        state: what has been delivered.
        state_lock: guards ``state``, which `ArtifactUploader` changes too.
    """

    def __init__(
        self, outbox: Outbox, server: TrackingServer, study: str, state: DeliveryState, state_lock: threading.RLock
    ):
        self._outbox, self._server, self._study = outbox, server, study
        self.state, self._state_lock = state, state_lock
        self._confirmed: set[str] = set()  # keys of runs that are known to exist
        self._reported: set[tuple[str, str]] = set()  # refused (kind, key), reported once
        self.state.fingerprint = self.state.fingerprint or _fingerprint(outbox)
        if self.state.server not in (None, server.name):
            logger.warning(
                f"MLflow: {server.name} is another server than before; "
                f"`uvar-tune sync --study {study} --rebuild` sends it what it lacks"
            )
            self.state.runs, self.state.possibly_duplicated = {}, []
            for trial in self.state.trials.values():
                _restart(trial)
        self.state.server, self.state.experiment_id = server.name, server.experiment_id

    def operations(self, stop: Callable[[], bool]) -> None:
        """Deliver the operations of the outbox, in order."""
        try:
            for operation, end in self._outbox.read(self.state.offset):
                if stop():
                    return
                self._deliver(operation)
                self.state.offset = end
                self._save(soon=True)
        finally:
            self._save()

    def _deliver(self, operation: dict[str, Any]) -> None:
        try:
            getattr(self, f"_{operation['op']}")(operation)
        except PermanentError as error:
            self._reject(operation, str(error))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            self._reject(operation, f"not a valid operation: {error!r}")

    def metrics(self, stop: Callable[[], bool]) -> None:
        """Deliver what the metrics logs of running trials have gained, and queue their new sample images."""
        with self._state_lock:
            keys = {upload.run for upload in self.state.uploads}
        for key in sorted(keys):
            self._run(key, time.time())
        for key, trial in list(self.state.trials.items()):
            if stop():
                return
            if not trial.finished:
                self._follow(key, trial, final=False)

    # The operations, named like the methods of `Tracker`.

    def _start_study(self, operation: dict[str, Any]) -> None:
        run_id = self._run(STUDY, operation["time"])
        self._describe(STUDY, run_id, operation["params"], self._filled(operation["tags"], run_id))

    def _start_trial(self, operation: dict[str, Any]) -> None:
        key, time_ms = str(operation["number"]), milliseconds(operation["time"])
        previous = self.state.trials.get(key)
        trial = previous or TrialProgress(operation["directory"])
        trial.directory, trial.finished = operation["directory"], False
        trial.name, trial.phase = operation.get("name"), operation.get("phase")
        self.state.trials[key] = trial
        run_id = self._run(key, operation["time"])
        note = trial_description(self._study, int(key)) if trial.phase == SEARCH else {}
        self._describe(key, run_id, operation["params"], {**note, **operation["tags"]})
        for ancestor in self._ancestors(key):
            self._server.set_status(self._run(ancestor, operation["time"]), "RUNNING", time_ms)
        self._server.set_status(run_id, "RUNNING", time_ms)
        self._log_inputs(run_id)
        config = self._outbox.absolute(trial.directory) / "config.yaml"
        if config.exists():
            self._queue(Upload(key, self._outbox.relative(config), ""))

    def _finish_trial(self, operation: dict[str, Any]) -> None:
        key = str(operation["number"])
        trial = self.state.trials.get(key)
        run_id = self._run(key, operation["time"])
        if trial is not None:
            self._follow(key, trial, final=True)
        directory = self._outbox.absolute(trial.directory) if trial else None
        points = missing_points(directory, operation["metrics"] or {}, operation["time"])
        tags = dict(operation.get("tags") or {})
        if directory is not None and self._queue_profile(key, directory):
            tags["mlflow.loggedArtifacts"] = json.dumps([{"path": PROFILE, "type": "table"}])
        self._describe(key, run_id, operation["params"], tags, points)
        self._server.set_status(run_id, operation["status"], milliseconds(operation["time"]))
        self._delete_duplicates(key)
        if trial is not None:
            trial.finished = True

    def _set_tags(self, operation: dict[str, Any]) -> None:
        key = STUDY if operation["number"] is None else str(operation["number"])
        run_id = self._run(key, operation["time"])
        self._log(key, run_id, (), {}, self._filled(operation["tags"], run_id))

    def _save_view(self, operation: dict[str, Any]) -> None:
        identity = {**self._identity(STUDY), "uvar.level": "trial", "uvar.phase": SEARCH}
        search_filter = " and ".join(f"tags.`{name}` = '{value}'" for name, value in identity.items())
        state, experiment = view_state(search_filter, operation), self._server.experiment_id
        key, version = view_key(self._study, self.state.fingerprint), self._server.version
        self.state.page = plain_page(experiment, state)  # if the server refuses the tag, or does not read it
        if version is None or version >= MIN_SERVER:
            self._server.set_experiment_tag(*view_tag(operation["name"], key, state, milliseconds(operation["time"])))
            self.state.page = view_page(experiment, key)

    def _log_datasets(self, operation: dict[str, Any]) -> None:
        self.state.datasets = operation["datasets"]
        self._log_inputs(self._run(STUDY, operation["time"]))

    def _log_study_metrics(self, operation: dict[str, Any]) -> None:
        run_id = self._run(STUDY, operation["time"])
        _, current = self._server.get_data(run_id)
        values = {key: float(value) for key, value in operation["values"].items()}
        time_ms = milliseconds(operation["time"])
        points = [MetricPoint(key, value, time_ms, 0) for key, value in values.items() if current.get(key) != value]
        self._log(STUDY, run_id, points, {}, {})

    def _log_artifact(self, operation: dict[str, Any]) -> None:
        key = STUDY if operation["number"] is None else str(operation["number"])
        self._run(key, operation["time"])
        self._queue(Upload(key, operation["path"], operation["folder"]))

    def _log_model(self, operation: dict[str, Any]) -> None:
        key = str(operation["number"])
        self._run(key, operation["time"])
        name = model_name(self._study, operation["number"])
        self._queue(Upload(key, operation["path"], name, operation["sampling"]))

    def _finish_study(self, operation: dict[str, Any]) -> None:
        run_id, time_ms = self._run(STUDY, operation["time"]), milliseconds(operation["time"])
        for key in [key for key in self.state.runs if key.startswith(_PHASE)]:
            self._server.set_status(self._run(key, operation["time"]), operation["status"], time_ms)
            self._delete_duplicates(key)
        self._server.set_status(run_id, operation["status"], time_ms)
        self._delete_duplicates(STUDY)

    # Runs.

    def _run(self, key: str, created: float) -> str:
        """The id of a run, which is created if it does not exist.

        Args:
            key: `STUDY`, a phase (``phase:noise``), a trial (``7``) or a replicate (``noise/0``).
            created: time of creation (s since the epoch).
        """
        runs = self.state.runs
        if key in self._confirmed:
            return runs[key]
        if key in runs and self._server.run_exists(runs[key]):
            self._confirmed.add(key)
            return runs[key]
        matches = self._server.find_runs(self._identity(key))
        run_id = matches[0] if matches else self._create(key, created)
        if key in runs:  # the server has lost the run
            if trial := self.state.trials.get(key):
                _restart(trial)
            logger.warning(
                f"MLflow has lost the run of {_describe_key(key)}: a new one is created; "
                f"`uvar-tune sync --study {self._study} --rebuild` sends it what it lacks"
            )
        runs[key] = run_id
        self._confirmed.add(key)
        self._save(soon=True)
        return run_id

    def _create(self, key: str, created: float) -> str:
        """Create a run. If the answer never comes it may exist all the same: `_delete_duplicates` looks later."""
        tags, name = self._identity(key), self._name(key)
        if key.startswith(_PHASE):
            tags["uvar.kind"] = "phase"
        if ancestors := self._ancestors(key):
            for ancestor in ancestors:
                self._run(ancestor, created)
            tags["mlflow.parentRunId"] = self.state.runs[ancestors[-1]]
        try:
            return self._server.create_run(name, tags, milliseconds(created))
        except TransientError:
            self.state.possibly_duplicated = sorted({*self.state.possibly_duplicated, key})
            self._save()
            raise

    def _delete_duplicates(self, key: str) -> None:
        """Delete runs that a request created although its answer never came."""
        if key in self.state.possibly_duplicated:
            for run_id in self._server.find_runs(self._identity(key)):
                if run_id != self.state.runs[key]:
                    self._server.delete_run(run_id)
            self.state.possibly_duplicated.remove(key)

    def _identity(self, key: str) -> dict[str, str]:
        """The tags that identify a run; the fingerprint distinguishes studies of one name below two roots."""
        tags = {"uvar.study": self._study, "uvar.fingerprint": self.state.fingerprint}
        if key == STUDY:
            return {**tags, "uvar.level": "study"}
        if key.startswith(_PHASE):
            return {**tags, "uvar.level": "phase", "uvar.phase": key.removeprefix(_PHASE)}
        return {**tags, "uvar.level": "trial", "uvar.trial": f"{self._study}/{key}"}

    def _name(self, key: str) -> str:
        if key == STUDY:
            return self._study
        if key.startswith(_PHASE):
            return f"{self._study} {key.removeprefix(_PHASE)}"
        trial = self.state.trials.get(key)
        return (trial and trial.name) or (f"trial {key}" if key.isdigit() else key)

    def _ancestors(self, key: str) -> list[str]:
        """Keys of the runs above a run, the study first."""
        if key == STUDY:
            return []
        trial = self.state.trials.get(key)
        return [STUDY, _PHASE + trial.phase] if trial and trial.phase else [STUDY]

    # Content.

    def _follow(self, key: str, trial: TrialProgress, *, final: bool) -> None:
        """Send the new lines of a trial's log and queue its new images; ``final``: nobody writes them any more."""
        run_id = self._run(key, time.time())  # first: a lost run resets the offset
        directory = self._outbox.absolute(trial.directory)
        try:
            points, end = new_points(directory, trial.offset)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            trial.finished = True
            self._save()
            self._reject({"op": "metrics log", "number": key}, f"{directory / 'metrics.jsonl'}: {error!r}")
            return
        images = new_images(directory / "samples", trial.images, final=final)
        if end == trial.offset and not images:
            return
        self._log(key, run_id, points, {}, {})
        with self._state_lock:
            trial.offset = end
            for path, stamp in images:
                trial.images[path.name] = stamp
                self._queue(Upload(key, self._outbox.relative(path), "samples"))
            self._save()

    def _describe(
        self,
        key: str,
        run_id: str,
        params: dict[str, str],
        tags: dict[str, str],
        points: Sequence[MetricPoint] = (),
    ) -> None:
        """Log parameters and tags. MLflow parameters are immutable: a change becomes the tag `uvar.changed.<name>`."""
        current = self._server.get_data(run_id)[0] if params else {}
        new = {name: value for name, value in params.items() if name not in current}
        changed = {f"uvar.changed.{name}": value for name, value in params.items() if current.get(name, value) != value}
        self._log(key, run_id, points, new, {**tags, **changed})

    def _log(
        self, key: str, run_id: str, points: Sequence[MetricPoint], params: dict[str, str], tags: dict[str, str]
    ) -> None:
        """Log a batch. What the server refuses of it goes to the dead letters, the rest is logged."""
        values = {point.key: point for point in points}
        for kind, name, reason in self._server.log_batch(run_id, points, params, tags):
            content = {"metric": values, "param": params, "tag": tags}[kind].get(name)
            self._outbox.dead_letter({"run": key, kind: name, "content": content}, reason)
            if (kind, name) not in self._reported:
                self._reported.add((kind, name))
                logger.warning(f"MLflow refuses {kind} {name!r} of {_describe_key(key)}: {reason} {self._kept()}")

    def _log_inputs(self, run_id: str) -> None:
        """Log the data sets of the study as inputs of a run; a server that refuses them says so once."""
        try:
            if self.state.datasets:
                self._server.log_datasets(run_id, self.state.datasets)
        except PermanentError as error:
            if ("data set", "") not in self._reported:
                self._reported.add(("data set", ""))
                self._reject({"op": "log_datasets", "number": None, "datasets": self.state.datasets}, str(error))

    def _queue_profile(self, key: str, directory: Path) -> bool:
        """Queue the table of a trial's scores at each inference point; whether there is one."""
        table = profile_table(directory)
        if table is None:
            return False
        path = self._outbox.directory / "tables" / key.replace("/", "-") / PROFILE
        with contextlib.suppress(OSError):  # a full disk: the table is missing in MLflow
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text_atomic(path, json.dumps(table))
            self._queue(Upload(key, self._outbox.relative(path), ""))
        return path.exists()

    def _filled(self, tags: dict[str, str], run_id: str) -> dict[str, str]:
        return fill(tags, run_id, self.state.page, self.state.runs, self._server.experiment_id)

    def _queue(self, upload: Upload) -> None:
        with self._state_lock:
            if upload not in self.state.uploads:
                self.state.uploads.append(upload)

    def _save(self, *, soon: bool = False) -> None:
        with self._state_lock:
            self._outbox.save_state(self.state, soon=soon)

    def _reject(self, item: dict[str, Any], reason: str) -> None:
        self._outbox.dead_letter(item, reason)
        of = "" if item.get("number") is None else f" of {_describe_key(str(item['number']))}"
        logger.warning(f"MLflow refuses {str(item.get('op')).replace('_', ' ')}{of}: {reason} {self._kept()}")

    def _kept(self) -> str:
        return f"(kept in {self._outbox.directory / 'dead_letters.jsonl'})"


class ArtifactUploader:
    """The artifact lane: uploads what `Delivery` queues. A file that fails goes to the end of the queue.

    Args:
        outbox: of the study; this process holds its lock.
        server: a connection of its own.
        state: the state of the `Delivery`.
        state_lock: guards ``state``.
    """

    def __init__(self, outbox: Outbox, server: TrackingServer, state: DeliveryState, state_lock: threading.RLock):
        self._outbox, self._server, self._state, self._state_lock = outbox, server, state, state_lock

    def upload(self, stop: Callable[[], bool]) -> None:
        """Upload every queued artifact once.

        Raises:
            TransientError: different files failed in a row, or the only one did; all of them stay queued.
        """
        with self._state_lock:
            uploads = list(self._state.uploads)
        try:
            self._upload_all(uploads, stop)
        finally:
            with self._state_lock:
                self._outbox.save_state(self._state)

    def _upload_all(self, uploads: list[Upload], stop: Callable[[], bool]) -> None:
        failed, error = 0, None
        for upload in uploads:
            if stop():
                return
            run_id = self._state.runs.get(upload.run)
            if run_id is None:  # its run is not there yet, or is being created again
                continue
            try:
                self._upload(run_id, upload)
            except TransientError as reason:
                failed, error = failed + 1, reason
                self._requeue(upload)
                if failed == _MAX_FAILED_UPLOADS:
                    break
            else:
                failed, error = 0, None
                self._remove(upload)
        if error is not None:
            raise error

    def _upload(self, run_id: str, upload: Upload) -> None:
        path = self._outbox.absolute(upload.path)
        try:
            if not path.exists():
                raise PermanentError(f"{path} is gone")
            if upload.sampling is None:
                self._server.upload(run_id, path, upload.folder)
            else:
                self._server.log_model(run_id, path, upload.folder, upload.sampling)
        except PermanentError as error:
            self._outbox.dead_letter({"op": "log_artifact", "run": upload.run, "path": upload.path}, str(error))
            kept = self._outbox.directory / "dead_letters.jsonl"
            logger.warning(f"MLflow refuses an artifact of {_describe_key(upload.run)}: {error} (noted in {kept})")

    def _remove(self, upload: Upload) -> None:
        with self._state_lock:
            self._state.uploads.remove(upload)
            self._outbox.save_state(self._state, soon=True)

    def _requeue(self, upload: Upload) -> None:
        with self._state_lock:
            self._state.uploads.remove(upload)
            self._state.uploads.append(upload)


_PHASE = "phase:"


def _restart(trial: TrialProgress) -> None:
    """Send everything of a trial again."""
    trial.offset, trial.images = 0, {}


def _describe_key(key: str) -> str:
    if key == STUDY:
        return "the study"
    return f"phase {key.removeprefix(_PHASE)}" if key.startswith(_PHASE) else f"trial {key}"


def _fingerprint(outbox: Outbox) -> str:
    """The fingerprint of a new study: a hash of where it is stored first."""
    return hashlib.sha256(str(outbox.directory.absolute().parent).encode()).hexdigest()[:16]
