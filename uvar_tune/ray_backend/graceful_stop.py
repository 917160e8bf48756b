"""Ctrl-C, SIGTERM and `ray job stop`: the first signal has workers save a checkpoint, a second one does not wait.

The stop flag is a key in the store of Ray's head. The driver sets it; every worker polls it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import ray

from uvar_tune.errors import ConfigError
from uvar_tune.ray_backend import _private
from uvar_tune.ray_backend.health import LostRay

logger = logging.getLogger(__name__)

_SAVE_TIMEOUT_SEC = 12.0  # for workers to save a checkpoint and end
_TUNE_VARIABLE = "TUNE_DISABLE_SIGINT_HANDLER"
_CLOSE_SEC = 18.0  # Tune grants 10 s more to what has not ended; MLflow and Ray need the rest
_DUPLICATE_SEC = 1.0  # a stop may arrive twice, for the process and for its group
_FLAG_POLL_SEC = 0.5


def stop_flag_key() -> str:
    """The key of this job's stop flag. Requires a running Ray."""
    return f"uvar_tune/stop/{ray.get_runtime_context().get_job_id()}"


def set_stop_flag(key: str) -> None:
    """Have every worker of a job stop, including those that are only starting."""
    _private.kv_put(key, b"1")


class StopFlagListener:
    """Polls the stop flag from a background thread so that training never blocks on an unresponsive head node.

    Calling the object returns whether a stop was requested.
    """

    def __init__(self):
        self._requested, self._closed = threading.Event(), threading.Event()

    def __enter__(self) -> StopFlagListener:
        self._key = stop_flag_key()
        # not joined: it may wait for the head
        threading.Thread(target=self._listen, name="stop-flag", daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._closed.set()

    def __call__(self) -> bool:
        """Whether a stop was requested."""
        return self._requested.is_set()

    def _listen(self) -> None:
        while not self._closed.wait(_FLAG_POLL_SEC):
            try:
                flag = _private.kv_get(self._key)
            except (OSError, RuntimeError, ray.exceptions.RayError):  # a head that is away, a Ray that is ending
                continue
            if flag:
                return self._requested.set()


class GracefulShutdown:
    """Context manager in which SIGINT and SIGTERM request a stop.

    Inside `run_tune` and `run_blocking` the workers save a checkpoint and end, then the call returns; workers that take
    too long are ended. Elsewhere KeyboardInterrupt is raised. Enter it after `ray.init`, which installs a SIGTERM
    handler of its own. Outside the main thread, where Python allows no handlers, signals are left alone.

    Args:
        lost: if Ray is lost, nothing can be saved and KeyboardInterrupt is raised at once.
    """

    def __init__(self, lost: LostRay | None = None):
        self._lost = lost or LostRay()
        self._requested, self._returned = threading.Event(), threading.Event()
        self._end: Callable[[], None] | None = None  # ends the running call
        self._first_signal = 0.0
        self._previous: dict[int, Any] = {}
        self._previous_variable = os.environ.get(_TUNE_VARIABLE)

    def __enter__(self) -> GracefulShutdown:
        self._key = stop_flag_key()
        if threading.current_thread() is threading.main_thread():
            self._previous = {
                number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)
            }
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        if self._previous_variable is None:
            os.environ.pop(_TUNE_VARIABLE, None)
        else:
            os.environ[_TUNE_VARIABLE] = self._previous_variable

    @property
    def stop_requested(self) -> bool:
        """Whether a stop was requested."""
        return self._requested.is_set()

    def run_tune(self, fit: Callable[[], Any]) -> Any:
        """The result of Tune's ``fit``, which a signal ends early.

        Raises:
            ConfigError: this is not the main thread, in which alone Tune can be asked to end.
        """
        if threading.current_thread() is not threading.main_thread():
            raise ConfigError("a study runs in the main thread of its process only: call it there, or in a process")
        os.environ[_TUNE_VARIABLE] = "1"
        # until Tune has its own: the default ends the process
        self._previous.setdefault(signal.SIGUSR1, signal.signal(signal.SIGUSR1, lambda *_: None))
        return self._run(fit, self.end_tune)

    def run_blocking(self, function: Callable[[], Any]) -> Any:
        """The result of ``function``.

        Raises:
            KeyboardInterrupt: a stop was requested and the function did not return in time.
        """
        return self._run(function, lambda: os.kill(os.getpid(), signal.SIGTERM))

    def end_tune(self) -> None:
        """Have Tune return, as if a stop had been requested."""
        self._requested.set()
        os.kill(os.getpid(), signal.SIGUSR1)

    def _run(self, function: Callable[[], Any], end: Callable[[], None]) -> Any:
        self._returned.clear()
        self._end = end
        try:
            return function()
        finally:
            self._end = None
            self._returned.set()

    def _on_signal(self, number: int, _frame) -> None:
        repeated, end = self.stop_requested, self._end
        if repeated and time.monotonic() - self._first_signal < _DUPLICATE_SEC:
            return
        self._requested.set()
        if end is None or repeated or self._lost.error is not None:
            raise KeyboardInterrupt
        self._first_signal = time.monotonic()
        logger.info("stopping: what is being trained saves a checkpoint (a second signal ends it at once)")
        # not in the handler, which may have interrupted a call of Ray
        for work in (self._request_stop, lambda: self._end_after_timeout(end)):
            threading.Thread(target=work, name="stopping", daemon=True).start()

    def _request_stop(self) -> None:
        with contextlib.suppress(Exception):  # the head is away: the workers are ended and save nothing
            set_stop_flag(self._key)

    def _end_after_timeout(self, end: Callable[[], None]) -> None:
        job_sec = float(
            os.environ.get("RAY_JOB_STOP_WAIT_TIME_S") or 0
        )  # after which `ray job stop` kills this process
        if not self._returned.wait(max(_SAVE_TIMEOUT_SEC, job_sec - _CLOSE_SEC)):
            end()
