"""One writer a directory, although the worker of an earlier attempt may still live."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from uvar_tune.errors import InfrastructureError
from uvar_tune.io.locks import FileLock, LockHeldError
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
    lock = FileLock(directory / _WRITER)
    try:
        previous = lock.acquire(wait_sec)
    except LockHeldError as error:
        raise InfrastructureError(
            f"{directory} is still written by {error.holder or 'another process'}, of an earlier attempt"
        ) from None
    try:
        recorder = MetricsLog(directory / "metrics.jsonl", attempt=attempt)
        if previous is not None:
            recorder.event("log", text=f"waited for {previous or 'another process'}, of an earlier attempt, to end")
        yield recorder
    finally:
        lock.release()
