"""Ctrl-C, SIGTERM and `ray job stop` end a study in order: the first signal asks, a second one does not wait."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)

_SAVING_SEC = 12.0  # for workers to save where they are and end by themselves
_CLOSING_SEC = 18.0  # Tune gives what has not ended 10 s more; MLflow and Ray need the rest
_TWICE_SEC = 1.0  # one stop may come twice, to the process and to its group


class GracefulShutdown:
    """While it lasts, SIGINT and SIGTERM are noted in ``asked`` and end what runs.

    Inside `running_tune` and `running` the workers are told to save and end, with which the call returns; what is left
    of them after some seconds is ended. Outside, KeyboardInterrupt is raised where the program stands. Enter it after
    `ray.init`, which installs a SIGTERM handler of its own.
    """

    def __init__(self):
        self.asked = threading.Event()
        self._over = threading.Event()
        self._end: Callable[[], None] | None = None  # how what runs is ended, while something does
        self._first = 0.0

    def __enter__(self) -> GracefulShutdown:
        from uvar_tune.ray_backend.stop_flag import stop_key

        self._key = stop_key()
        self._before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def running_tune(self, run: Callable[[], Any]) -> Any:
        """The result of ``run()``, which a signal ends early."""
        os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
        signal.signal(signal.SIGUSR1, lambda *_: None)  # until Tune has its own: by default it would end the program
        return self._until_over(run, self.end)

    def running(self, run: Callable[[], Any]) -> Any:
        """The result of ``run()``; KeyboardInterrupt where a signal came and it did not end in time."""
        return self._until_over(run, lambda: os.kill(os.getpid(), signal.SIGTERM))

    def _until_over(self, run: Callable[[], Any], end: Callable[[], None]) -> Any:
        self._over.clear()
        self._end = end
        try:
            return run()
        finally:
            self._end = None
            self._over.set()

    def end(self) -> None:
        """Have Tune return, without a signal from outside."""
        self.asked.set()
        os.kill(os.getpid(), signal.SIGUSR1)

    def _stop(self, number: int, _frame) -> None:
        again, end = self.asked.is_set(), self._end
        if again and time.monotonic() - self._first < _TWICE_SEC:
            return
        self.asked.set()
        if end is None or again:
            raise KeyboardInterrupt
        self._first = time.monotonic()
        logger.info("stopping: what is being trained saves a checkpoint (a second time ends it at once)")
        for work in (
            self._tell,
            lambda: self._ask(end),
        ):  # not in the handler, which may have broken in on a call of Ray's
            threading.Thread(target=work, name="stopping", daemon=True).start()

    def _tell(self) -> None:
        from uvar_tune.ray_backend.stop_flag import set_stop_flag

        with contextlib.suppress(Exception):  # a head that is away: then what runs is ended, and nothing saved
            set_stop_flag(self._key)

    def _ask(self, end: Callable[[], None]) -> None:
        job_sec = float(
            os.environ.get("RAY_JOB_STOP_WAIT_TIME_S") or 0
        )  # after which `ray job stop` kills this process
        if not self._over.wait(max(_SAVING_SEC, job_sec - _CLOSING_SEC)):
            end()
