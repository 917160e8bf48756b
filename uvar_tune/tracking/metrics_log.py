"""The trial's own record: an append-only file of JSON lines, written ahead of everything that shows it.

Each line: ``time`` (s since 1970), ``attempt``, ``kind`` and, for metrics, ``images`` and ``values``. Steps that a resumed
attempt computes again are not written twice. Values that are not finite stand as "nan", "inf" or "-inf".

Recording raises nothing into a training: what the disk refuses waits in memory, in order, and is written with the next line.
`settle`, before a checkpoint, does raise, so that no checkpoint says more than the record.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import time
from collections import deque
from pathlib import Path
from typing import Any

AXES = ("temperature", "cfg_ramp", "top_k", "top_p")  # in which a score may differ from another, beside the CFG scale
_WAITING = 10_000  # lines kept of a record that cannot be written; the oldest go first


class MetricsLog:
    """Appends to ``path``; one writer at a time (rank 0 of the trial)."""

    def __init__(self, path: str | Path, *, attempt: int = 1):
        self._path, self._attempt = Path(path), attempt
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._last: dict[str, int] = {}
        self._waiting: deque[bytes] = deque(maxlen=_WAITING)  # lines that the disk refused
        self._mend()

    def metrics(self, images: int, values: dict[str, float], **tags: Any) -> None:
        """Record values at a number of images seen; a key at or before its last recorded point is left out."""
        fresh = {key: value for key, value in values.items() if images > self._last.get(key, -1)}
        if fresh:
            self._last |= dict.fromkeys(fresh, images)
            self._write(
                "metrics", {"images": images, "values": {key: _encode(value) for key, value in fresh.items()}, **tags}
            )

    def event(self, kind: str, **fields: Any) -> None:
        """Record that something happened; on disk when this returns, if the disk takes it."""
        self._write(kind, _encode(fields), sync=True)

    def settle(self) -> None:
        """Write what waits. Raises OSError where the disk still refuses it."""
        if self._waiting:
            self._append(sync=True)

    def _write(self, kind: str, fields: dict[str, Any], sync: bool = False) -> None:
        line = json.dumps({"time": time.time(), "attempt": self._attempt, "kind": kind, **fields}, allow_nan=False)
        self._waiting.append(line.encode() + b"\n")
        with contextlib.suppress(OSError):
            self._append(sync)

    def _append(self, sync: bool) -> None:
        """All that waits, or nothing of it: a line that is cut off in the middle would spoil the next."""
        with self._path.open("ab", buffering=0) as handle:
            end, lines = handle.tell(), b"".join(self._waiting)
            try:
                if handle.write(lines) != len(lines):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
                if sync:
                    os.fsync(handle.fileno())
            except OSError:
                os.truncate(self._path, end)
                raise
        self._waiting.clear()

    def _mend(self) -> None:
        """Cut off a torn last line (the writer was killed within it) and note what has been recorded."""
        if not self._path.exists():
            return
        records, end = read_records(self._path)
        if end < self._path.stat().st_size:
            os.truncate(self._path, end)
        for record in records:
            if record["kind"] == "metrics":
                for key in record["values"]:
                    self._last[key] = max(record["images"], self._last.get(key, -1))


def read_records(path: str | Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """(the complete lines from byte ``offset`` on, the offset behind the last of them); nothing where no file is."""
    try:
        with Path(path).open("rb") as handle:
            handle.seek(offset)
            data = handle.read()
    except FileNotFoundError:
        return [], offset
    end = data.rfind(b"\n") + 1
    return [_decode(json.loads(line)) for line in data[:end].splitlines() if line.strip()], offset + end


def last_time(path: str | Path) -> float | None:
    """When the last complete line was written (s since 1970); None where there is none."""
    records, _ = read_records(path)
    return records[-1]["time"] if records else None


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
