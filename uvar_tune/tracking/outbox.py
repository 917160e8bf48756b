"""What MLflow has not been told yet, on disk, so that neither a dead server nor a dead driver loses anything.

    run.root/NAME/mlflow/outbox.jsonl     operations in order, appended by any process of the study, each before it is tried
                         state.json       how far outbox and trial records are delivered, and which run is which
                         rejected.jsonl   what the server refused, with its reason
                         .lock            held by the one process that delivers

Every delivery may be repeated without doubling anything, so state.json may lag behind what was sent, never run ahead.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections import deque
from pathlib import Path
from typing import Any

from uvar_tune.io.atomic import write_text_atomic
from uvar_tune.io.locks import FileLock, LockHeldError

STUDY = "study"  # the key of the parent run among the runs; a trial's is its number
_EMPTY = {"server": None, "root": None, "outbox": 0, "runs": {}, "trials": {}, "uncertain": [], "tries": {}}


class Outbox:
    """The outbox and its state. `put` may be called from any thread and never raises."""

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        self._outbox, self._state = self.directory / "outbox.jsonl", self.directory / "state.json"
        self._mutex = threading.Lock()
        self._waiting: deque[bytes] = deque(maxlen=10_000)  # lines that the disk refused
        self._lock = FileLock(self.directory / ".lock")

    def put(self, operation: dict[str, Any]) -> str | None:
        """Append an operation; the reason where the disk refuses (it is kept in memory and written when that ends)."""
        with self._mutex:
            self._waiting.append(json.dumps(operation, default=str).encode() + b"\n")
            return self._flush()

    def flush(self) -> str | None:
        """Write what the disk refused before; the reason where it still does."""
        with self._mutex:
            return self._flush()

    def _flush(self) -> str | None:
        if not self._waiting:
            return None
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with self._outbox.open("a+b") as handle:
                torn = handle.tell() and os.pread(handle.fileno(), 1, handle.tell() - 1) != b"\n"
                handle.write(
                    b"\n" * bool(torn) + b"".join(self._waiting)
                )  # a writer killed within a line leaves half of it
        except OSError as error:
            return error.strerror
        self._waiting.clear()
        return None

    def after(self, offset: int) -> list[tuple[dict[str, Any], int]]:
        """(operation, offset behind it) for every complete line from byte ``offset`` on; what is none of ours is passed over."""
        try:
            with self._outbox.open("rb") as handle:
                handle.seek(offset)
                lines = handle.read().splitlines(keepends=True)
        except OSError:
            return []
        found = []
        for line in lines:
            offset += len(line)
            if line.endswith(b"\n"):
                with contextlib.suppress(
                    ValueError, RecursionError
                ):  # half a line; NULs, where the machine lost its power
                    operation = json.loads(line)
                    if isinstance(operation, dict):
                        found.append((operation, offset))
        return found

    def operations(self) -> list[dict[str, Any]]:
        """Every operation of the outbox, delivered or not."""
        return [operation for operation, _ in self.after(0)]

    def rewrite(self, operations: list[dict[str, Any]]) -> None:
        """Make these the outbox, none of them delivered; the study keeps the mark by which its runs are known.

        Raises:
            OSError: it cannot be written; the outbox is as it was.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        write_text_atomic(
            self._state, json.dumps({**_EMPTY, "root": self.load()["root"]})
        )  # first: what is sent twice is shown once
        write_text_atomic(self._outbox, "".join(json.dumps(operation, default=str) + "\n" for operation in operations))

    def load(self) -> dict[str, Any]:
        """The state of delivery: server, root (the mark of the study's runs), outbox (offset), runs {key: id}, trials {number: …},
        uncertain [key of a run], tries {file: count}."""
        with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
            return {**json.loads(json.dumps(_EMPTY)), **json.loads(self._state.read_text())}
        return json.loads(json.dumps(_EMPTY))

    def save(self, state: dict[str, Any]) -> None:
        """Replace the state in one step. A full disk leaves the older one, from which delivery repeats."""
        with contextlib.suppress(OSError):
            write_text_atomic(self._state, json.dumps(state))

    def reject(self, what: dict[str, Any], reason: str) -> None:
        with contextlib.suppress(OSError), (self.directory / "rejected.jsonl").open("a") as handle:
            handle.write(json.dumps({"reason": reason, **what}) + "\n")

    def unsent(self) -> tuple[int, int]:
        """(operations, trials with lines in their record) that are not delivered."""
        state = self.load()
        behind = [entry for entry in state["trials"].values() if not entry["done"] and self._record_ahead(entry)]
        return len(self.after(state["outbox"])) + len(self._waiting), len(behind)

    def _record_ahead(self, entry: dict[str, Any]) -> bool:
        with contextlib.suppress(OSError), (self.absolute(entry["directory"]) / "metrics.jsonl").open("rb") as handle:
            handle.seek(entry["offset"])
            return b"\n" in handle.read()
        return False

    def hold(self) -> bool:
        """Become the one that delivers; False while another process (or sink) is."""
        if not self._lock.is_held:
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
                self._lock.acquire(timeout_sec=0)
            except (OSError, LockHeldError):
                return False
        return True

    def release(self) -> None:
        self._lock.release()

    def relative(self, path: str | Path) -> str:
        """A path as it is stored: relative where it lies within the study, so that a study can be moved."""
        path = Path(path).absolute()
        study = self.directory.absolute().parent
        return str(path.relative_to(study)) if path.is_relative_to(study) else str(path)

    def absolute(self, path: str) -> Path:
        return self.directory.absolute().parent / path


def known_runs(spool_dir: str | Path) -> dict[int, str]:
    """{trial number: MLflow run id} as far as runs have been made."""
    return {int(key): run_id for key, run_id in Outbox(spool_dir).load()["runs"].items() if key.isdigit()}
