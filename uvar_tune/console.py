"""Progress for people: lines of work in other processes and in this one, tables, CPU time."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console, RenderableType

from uvar_tune.tracking.metrics_log import read_records

logger = logging.getLogger(__name__)

_FOLLOW_INTERVAL_SEC = 10.0
_PROGRESS_INTERVAL_SEC = 5.0
_CPU_INTERVAL_SEC = 1.0


def print_table(table: RenderableType, width: int = 100) -> None:
    """Print a table at the width of the terminal, or at ``width`` columns if the output is not a terminal."""
    Console(width=None if Console().is_terminal else width).print(table)


def progress_callback(text: str, total: int) -> Callable[[int, int], None]:
    """A callback for work in this process.

    Args:
        text: what is being done.
        total: number of items.

    Returns:
        A function of (items done, items in total) that logs a line at most every 5 s, and one at the end.
    """
    logger.info(f"  {text}: 0 of {total:,}")
    start = logged = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal logged
        now = time.monotonic()
        if done == total or now - logged > _PROGRESS_INTERVAL_SEC:
            rest = f"{(now - start) / done * (total - done):.0f} s left" if done < total else f"{now - start:.1f} s"
            logger.info(f"  {text}: {done:,} of {total:,}, {rest}")
            logged = now

    return report


class LogFollower:
    """Logs the progress of other processes from their metrics logs, about every 10 s.

    Used as a context manager it polls from a background thread.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._logs: dict[str, _FollowedLog] = {}
        self._stop = threading.Event()

    def follow(self, name: str, path: Path, images: int) -> None:
        """Follow a metrics log from its present end.

        Args:
            name: begins each line.
            path: of the metrics log, which need not exist yet.
            images: number of training images at which the work ends.
        """
        with self._lock:
            self._logs[name] = _FollowedLog(name, path, images)

    def forget(self, name: str) -> None:
        """Log the remaining log events of ``name`` and stop following it."""
        with self._lock:
            followed = self._logs.pop(name, None)
            for line in followed.events() if followed else ():
                logger.info(line)

    @contextlib.contextmanager
    def following(self, name: str, path: Path, images: int) -> Iterator[None]:
        """Follow one metrics log for the duration of a ``with`` block; arguments as in `follow`."""
        self.follow(name, path, images)
        try:
            with self:
                yield
        finally:
            self._poll()
            self.forget(name)

    def __enter__(self) -> LogFollower:
        self._stop.clear()
        self._thread = threading.Thread(target=self._loop, name="progress", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()

    def _loop(self) -> None:
        while not self._stop.wait(_FOLLOW_INTERVAL_SEC):
            self._poll()

    def _poll(self) -> None:
        with self._lock:
            for followed in self._logs.values():
                for line in followed.news():
                    logger.info(line)


class _FollowedLog:
    """One metrics log and the offset up to which it was read."""

    def __init__(self, name: str, path: Path, images: int):
        self._name, self._path, self._images = name, path, images
        self._offset = path.stat().st_size if path.exists() else 0

    def events(self) -> list[str]:
        """Lines for the log events since the last call."""
        return self._event_lines(self._read())

    def news(self) -> list[str]:
        """Lines for the log events since the last call, and one for the latest training step."""
        records = self._read()
        lines = self._event_lines(records)
        steps = [record for record in records if record.get("kind") == "metrics" and "loss/total" in record["values"]]
        if steps:
            images, values = steps[-1]["images"], steps[-1]["values"]
            rate = values.get("images_per_sec", 0.0)
            left = f", {(self._images - images) / rate:.0f} s left" if rate > 0 else ""
            lines.append(
                f"  {self._name}: {images:,}/{self._images:,} images, loss {values['loss/total']:.4f}, "
                f"{rate:,.0f} images/s{left}"
            )
        return lines

    def _read(self) -> list[dict[str, Any]]:
        records, self._offset = read_records(self._path, self._offset)
        return records

    def _event_lines(self, records: list[dict[str, Any]]) -> list[str]:
        return [f"  {self._name}: {record['text']}" for record in records if record.get("kind") == "log"]


class CpuTimeMeter:
    """Sums the CPU time of this process and all of its descendants, including a local Ray and its workers.

    Polls every second as a context manager, because the CPU time of an ended process is lost. On a cluster it covers
    this machine's descendants only.
    """

    def __init__(self):
        self._seconds: dict[tuple[int, float], float] = {}  # (process id, creation time) → user + system seconds
        self._stop = threading.Event()

    def __enter__(self) -> CpuTimeMeter:
        self._poll()
        self._start_sec = self._total()
        self._thread = threading.Thread(target=self._loop, name="cpu meter", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()
        self._poll()

    @property
    def seconds(self) -> float:
        """CPU seconds since the block was entered."""
        return self._total() - self._start_sec

    def _total(self) -> float:
        return sum(self._seconds.values())

    def _loop(self) -> None:
        while not self._stop.wait(_CPU_INTERVAL_SEC):
            self._poll()

    def _poll(self) -> None:
        this = psutil.Process()
        for process in [this, *this.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                times = process.cpu_times()
                self._seconds[process.pid, process.create_time()] = times.user + times.system
