"""CPU seconds of this process and of all that it starts, an own Ray and its workers among them."""

from __future__ import annotations

import contextlib
import threading

import psutil


class CpuTimeMeter:
    """Counts while it lasts, by looking every second: processes that end do not hand their seconds on to anybody.

    On a cluster it sees this machine's share only, and nothing of a Ray that was there before.
    """

    def __init__(self):
        self._seconds: dict[tuple[int, float], float] = {}
        self._stop = threading.Event()

    def __enter__(self) -> CpuTimeMeter:
        self._look()
        self._before = self._total()
        self._thread = threading.Thread(target=self._loop, name="cpu meter", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    @property
    def seconds(self) -> float:
        return self._total() - self._before

    def _total(self) -> float:
        return sum(self._seconds.values())

    def _loop(self) -> None:
        while not self._stop.wait(1.0):
            self._look()

    def _look(self) -> None:
        this = psutil.Process()
        for process in [this, *this.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                times = process.cpu_times()
                self._seconds[process.pid, process.create_time()] = times.user + times.system
