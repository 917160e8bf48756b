"""The metrics log of a trial: an append-only file of JSON lines, written by rank 0 before anything displays a value.

Each line holds ``time`` (s since the epoch), ``attempt``, ``kind`` and, for metrics, ``images`` and ``values``. Steps
that a resumed attempt repeats are not logged twice. Non-finite values are stored as "nan", "inf" and "-inf".

Logging never raises into the training loop: lines that the disk refuses are buffered in memory and written, in order,
with the next line. `MetricsLog.flush`, called before a checkpoint, does raise: no checkpoint is ahead of its log.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from uvar_tune.errors import InfrastructureError
from uvar_tune.io.locks import FileLock, LockHeldError

AXES = ("temperature", "cfg_ramp", "top_k", "top_p")  # inference parameters of a score besides the CFG scale
_MAX_BUFFERED_LINES = 10_000  # the oldest are dropped first
_LOCK_NAME = ".writer.lock"


class MetricsLog:
    """Appends to one metrics log; at most one writer at a time (see `open_metrics_log`).

    Args:
        path: the log file; its directory is created.
        attempt: the number of the attempt that writes, stored in every line.
    """

    def __init__(self, path: str | Path, *, attempt: int = 1):
        self._path, self._attempt = Path(path), attempt
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._last_images: dict[str, int] = {}
        self._buffer: deque[bytes] = deque(maxlen=_MAX_BUFFERED_LINES)
        self._resume()

    def metrics(self, images: int, values: dict[str, float], **fields: Any) -> None:
        """Log values at a number of images seen; a key is skipped at or before its last logged point."""
        new = {key: value for key, value in values.items() if images > self._last_images.get(key, -1)}
        if new:
            self._last_images |= dict.fromkeys(new, images)
            encoded = {key: _encode(value) for key, value in new.items()}
            self._write("metrics", {"images": images, "values": encoded, **fields})

    def event(self, kind: str, **fields: Any) -> None:
        """Log an event and fsync it, unless the disk refuses it."""
        self._write(kind, _encode(fields), sync=True)

    def flush(self) -> None:
        """Write all buffered lines.

        Raises:
            OSError: the disk still refuses them.
        """
        if self._buffer:
            self._append(sync=True)

    def _write(self, kind: str, fields: dict[str, Any], sync: bool = False) -> None:
        line = json.dumps({"time": time.time(), "attempt": self._attempt, "kind": kind, **fields}, allow_nan=False)
        self._buffer.append(line.encode() + b"\n")
        with contextlib.suppress(OSError):
            self._append(sync)

    def _append(self, sync: bool) -> None:
        """Write all buffered lines or none: a line cut in the middle would spoil the next one."""
        with self._path.open("ab", buffering=0) as handle:
            end, lines = handle.tell(), b"".join(self._buffer)
            try:
                if handle.write(lines) != len(lines):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
                if sync:
                    os.fsync(handle.fileno())
            except OSError:
                os.truncate(self._path, end)
                raise
        self._buffer.clear()

    def _resume(self) -> None:
        """Truncate a torn last line and note the last point of every key."""
        for record in truncate_torn_line(self._path):
            if record["kind"] == "metrics":
                for key in record["values"]:
                    self._last_images[key] = max(record["images"], self._last_images.get(key, -1))


def truncate_torn_line(path: Path) -> list[dict[str, Any]]:
    """Remove an incomplete last line, left by a writer that was killed; the complete records."""
    records, end = read_records(path)
    if path.exists() and end < path.stat().st_size:
        os.truncate(path, end)
    return records


def read_records(path: str | Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Read the complete lines from a byte offset on.

    Returns:
        The records and the offset behind the last of them; no records if the file does not exist.
    """
    try:
        with Path(path).open("rb") as handle:
            handle.seek(offset)
            data = handle.read()
    except FileNotFoundError:
        return [], offset
    end = data.rfind(b"\n") + 1
    return [_decode(json.loads(line)) for line in data[:end].splitlines() if line.strip()], offset + end


def last_time(path: str | Path) -> float | None:
    """Time of the last complete line (s since the epoch); None if there is none."""
    records, _ = read_records(path)
    return records[-1]["time"] if records else None


@contextlib.contextmanager
def open_metrics_log(
    directory: Path, *, rank: int = 0, attempt: int = 1, wait_sec: float = 180.0
) -> Iterator[MetricsLog | None]:
    """The metrics log of a trial directory under an exclusive writer lock on rank 0; None on other ranks.

    A worker may outlive the driver that started it: Ray ends workers of a lost head node after a minute, and those of a
    partitioned node when it can. The lock waits for it. The kernel releases the lock when the process ends, in any way.

    Args:
        directory: the trial directory, created if missing.
        rank: rank of this process.
        attempt: number of the attempt.
        wait_sec: how long to wait for a previous writer.

    Raises:
        InfrastructureError: a previous writer still holds the lock after ``wait_sec``.
    """
    if rank > 0:
        yield None
        return
    directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory / _LOCK_NAME)
    try:
        previous = lock.acquire(wait_sec)
    except LockHeldError as error:
        raise InfrastructureError(
            f"{directory} is still written by {error.holder or 'another process'}, of an earlier attempt"
        ) from None
    try:
        metrics_log = MetricsLog(directory / "metrics.jsonl", attempt=attempt)
        if previous is not None:
            metrics_log.event("log", text=f"waited for {previous or 'another process'}, of an earlier attempt, to end")
        yield metrics_log
    finally:
        lock.release()


def _encode(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if isinstance(value, dict):
        return {key: _encode(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encode(part) for part in value]
    return value


def _decode(record: dict[str, Any]) -> dict[str, Any]:
    if record.get("kind") == "metrics":
        record["values"] = {key: float(value) for key, value in record["values"].items()}
    return record
