"""One writer a directory, although the worker of an earlier attempt may still live."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from uvar_tune.errors import InfrastructureError
from uvar_tune.tracking.metrics_log import MetricsLog

_WRITER = ".writer"


@contextlib.contextmanager
def open_metrics_log(
    directory: Path, *, rank: int = 0, attempt: int = 1, wait_sec: float = 180.0
) -> Iterator[MetricsLog | None]:
    """The recorder of what a directory holds, for as long as rank 0 alone writes there; None on other ranks.

    A worker may outlive the driver that began it: Ray ends those of a lost head after a minute, and of a node that was cut off
    when it can. It is waited for. The kernel lets go of the directory when the process has ended, however it ended.

    Raises:
        InfrastructureError: somebody still writes there after ``wait_sec`` seconds.
    """
    if rank > 0:
        yield None
        return
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / _WRITER).open("a+") as handle:
        before = _take(handle, wait_sec)
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {socket.gethostname()}")
        handle.flush()
        recorder = MetricsLog(directory / "metrics.jsonl", attempt=attempt)
        if before:
            recorder.event("log", text=f"waited for {before}, of an earlier attempt, to end")
        try:
            yield recorder
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)  # a child that was forked meanwhile holds the file too


def _take(handle, wait_sec: float) -> str | None:
    """Lock the file; who held it, where somebody did."""
    deadline, before = time.monotonic() + wait_sec, None
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return before
        except BlockingIOError:
            handle.seek(0)
            before = handle.read() or "another process"
        if time.monotonic() > deadline:
            raise InfrastructureError(f"{Path(handle.name).parent} is still written by {before}, of an earlier attempt")
        time.sleep(0.2)
