"""A transactional outbox: what MLflow has not received yet, on disk, safe from a dead server or a dead driver.

run.root/NAME/mlflow/
    outbox.jsonl         operations in order, appended by any process of the study before any attempt to send them
    state.json           `DeliveryState`: what has been delivered, and the ids of the runs
    dead_letters.jsonl   what the server refused, with the reason
    .lock                held by the one process that delivers

Every delivery can be repeated without duplicating anything: state.json may lag behind what was sent, never run ahead.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from uvar_tune.io.atomic import write_text_atomic
from uvar_tune.io.locks import FileLock, LockHeldError

_SAVE_SHARE = 50  # a save soon after another waits for 50 times as long as that took
STUDY = "study"  # key of the parent run; the key of a trial is its number, that of a replicate "noise/0"
_MAX_BUFFERED_OPERATIONS = 10_000  # the oldest are dropped first


@dataclass
class TrialProgress:
    """How far one trial has been delivered.

    Attributes:
        directory: the trial's directory, as stored by `Outbox.relative`.
        name: name of its run.
        phase: phase whose run is the parent; None if the study's run is.
        offset: bytes of metrics.jsonl that have been delivered.
        images: name of a sample image → [size, mtime_ns] when it was queued.
        finished: whether the trial's run has ended.
    """

    directory: str
    name: str | None = None
    phase: str | None = None
    offset: int = 0
    images: dict[str, list[int]] = field(default_factory=dict)
    finished: bool = False


@dataclass
class Upload:
    """One queued artifact.

    Attributes:
        run: key of its run.
        path: as stored by `Outbox.relative`.
        folder: within the run's artifacts; of a model, its name.
        sampling: of a checkpoint that becomes a model: settings of the sampler, by name; None for plain files.
    """

    run: str
    path: str
    folder: str
    sampling: dict[str, float] | None = None


@dataclass
class DeliveryState:
    """What has been delivered.

    Attributes:
        server: the server that has received everything below.
        experiment_id: id of the experiment there.
        fingerprint: identifies the study's runs among those of the same name; kept when the study moves.
        offset: bytes of the outbox that have been delivered.
        runs: key → MLflow run id.
        trials: key → progress.
        uploads: artifacts that are queued, in order.
        possibly_duplicated: keys of runs whose creation was never answered, and may have succeeded.
        datasets: the data sets of the study, see `RunLogger.log_datasets`.
        page: where MLflow's page shows the ranked trials, as the part of its address behind ``#``.
    """

    server: str | None = None
    experiment_id: str | None = None
    fingerprint: str | None = None
    offset: int = 0
    runs: dict[str, str] = field(default_factory=dict)
    trials: dict[str, TrialProgress] = field(default_factory=dict)
    uploads: list[Upload] = field(default_factory=list)
    possibly_duplicated: list[str] = field(default_factory=list)
    datasets: list[dict[str, Any]] = field(default_factory=list)
    page: str | None = None

    @classmethod
    def parse(cls, text: str) -> DeliveryState:
        """The state from its JSON.

        Raises:
            ValueError, TypeError, AttributeError, RecursionError: not a state.
        """
        tree = json.loads(text)
        trials = {key: TrialProgress(**progress) for key, progress in tree.pop("trials", {}).items()}
        return cls(**tree | {"trials": trials, "uploads": [Upload(**upload) for upload in tree.pop("uploads", [])]})


class Pending(NamedTuple):
    """What has not been delivered yet."""

    operations: int
    trials: int
    artifacts: int

    def __str__(self) -> str:
        counts = [
            (self.operations, "operation"),
            (self.trials, "trial's metrics" if self.trials == 1 else "trials' metrics"),
            (self.artifacts, "artifact"),
        ]
        return ", ".join(
            f"{count:,} {name}{'s' if count != 1 and not name.endswith('s') else ''}" for count, name in counts if count
        )


class Outbox:
    """The outbox of one study. `append` may be called from any thread and never raises.

    Args:
        directory: ``run.root/NAME/mlflow``.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        self._operations, self._state = self.directory / "outbox.jsonl", self.directory / "state.json"
        self._mutex = threading.Lock()
        self._buffer: deque[bytes] = deque(maxlen=_MAX_BUFFERED_OPERATIONS)
        self._lock = FileLock(self.directory / ".lock")
        self._next_save = 0.0

    def append(self, operation: dict[str, Any]) -> str | None:
        """Append an operation.

        Returns:
            None, or why the disk refuses it; it is then buffered in memory and written with the next one.
        """
        with self._mutex:
            self._buffer.append(json.dumps(operation, default=str).encode() + b"\n")
            return self._flush()

    def flush(self) -> str | None:
        """Write what is buffered; None, or why the disk refuses it."""
        with self._mutex:
            return self._flush()

    def _flush(self) -> str | None:
        if not self._buffer:
            return None
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with self._operations.open("a+b") as handle:
                # A writer that was killed may have left half a line.
                torn = handle.tell() and os.pread(handle.fileno(), 1, handle.tell() - 1) != b"\n"
                handle.write(b"\n" * bool(torn) + b"".join(self._buffer))
        except OSError as error:
            return error.strerror
        self._buffer.clear()
        return None

    def read(self, offset: int = 0) -> list[tuple[dict[str, Any], int]]:
        """Every operation from a byte offset on, with the offset behind it; other lines are skipped."""
        try:
            with self._operations.open("rb") as handle:
                handle.seek(offset)
                lines = handle.read().splitlines(keepends=True)
        except OSError:
            return []
        operations = []
        for line in lines:
            offset += len(line)
            if line.endswith(b"\n"):
                # Half a line, or NULs after a power failure.
                with contextlib.suppress(ValueError, RecursionError):
                    operation = json.loads(line)
                    if isinstance(operation, dict):
                        operations.append((operation, offset))
        return operations

    def operations(self) -> list[dict[str, Any]]:
        """Every operation, delivered or not."""
        return [operation for operation, _ in self.read()]

    def replace_all(self, operations: list[dict[str, Any]]) -> None:
        """Replace the outbox by undelivered operations; the study keeps its fingerprint.

        Raises:
            OSError: it cannot be written; the outbox is unchanged.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        state = DeliveryState(fingerprint=self.load_state().fingerprint)
        write_text_atomic(self._state, json.dumps(asdict(state)))  # first: what is sent twice is stored once
        text = "".join(json.dumps(operation, default=str) + "\n" for operation in operations)
        write_text_atomic(self._operations, text)

    def load_state(self) -> DeliveryState:
        """The state of delivery; the empty one if there is none or it is damaged."""
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, RecursionError):
            return DeliveryState.parse(self._state.read_text(encoding="utf-8"))
        return DeliveryState()

    def save_state(self, state: DeliveryState, *, soon: bool = False) -> None:
        """Replace the state atomically. On a full disk the older one remains, from which delivery repeats.

        Args:
            state: the state of delivery.
            soon: another call follows: of many calls in a row, few write the file, whose size grows with the study.
        """
        began = time.monotonic()
        if soon and began < self._next_save:
            return
        with contextlib.suppress(OSError):
            write_text_atomic(self._state, json.dumps(vars(state), default=vars))
        ended = time.monotonic()
        self._next_save = ended + _SAVE_SHARE * (ended - began)

    def dead_letter(self, item: dict[str, Any], reason: str) -> None:
        """Store what the server refused, with the reason."""
        path = self.directory / "dead_letters.jsonl"
        with contextlib.suppress(OSError), path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps({"reason": reason, **item}, default=str) + "\n")

    def pending(self) -> Pending:
        """What has not been delivered."""
        state = self.load_state()
        behind = [trial for trial in state.trials.values() if not trial.finished and self._has_new_lines(trial)]
        return Pending(len(self.read(state.offset)) + len(self._buffer), len(behind), len(state.uploads))

    def _has_new_lines(self, trial: TrialProgress) -> bool:
        path = self.absolute(trial.directory) / "metrics.jsonl"
        with contextlib.suppress(OSError), path.open("rb") as handle:
            handle.seek(trial.offset)
            return b"\n" in handle.read()
        return False

    def acquire_lock(self) -> bool:
        """Become the one that delivers; False while another process or tracker is."""
        if not self._lock.is_held:
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
                self._lock.acquire(timeout_sec=0)
            except (LockHeldError, OSError):
                return False
        return True

    def release_lock(self) -> None:
        """Let another process or tracker deliver."""
        self._lock.release()

    def relative(self, path: str | Path) -> str:
        """A path as it is stored: relative if it is within the study, so that a study can be moved."""
        path = Path(path).absolute()
        study = self.directory.absolute().parent
        return str(path.relative_to(study)) if path.is_relative_to(study) else str(path)

    def absolute(self, path: str) -> Path:
        """The path behind a stored one."""
        return self.directory.absolute().parent / path


def run_ids(directory: str | Path) -> dict[int, str]:
    """The MLflow run id of every trial of the search that has one, by trial number.

    Args:
        directory: ``run.root/NAME/mlflow``.
    """
    return {int(key): run_id for key, run_id in Outbox(directory).load_state().runs.items() if key.isdigit()}
