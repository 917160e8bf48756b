"""Ctrl-C, SIGTERM and `ray job stop` end a study in order: the first signal asks, a second one does not wait."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

_SAVING_SEC = 12.0  # for workers to save where they are and end by themselves; Tune then gives those that have not 10 s more


class Interruptible:
    """While it lasts, SIGINT and SIGTERM are noted in ``asked`` and end what runs.

    Inside `running_tune` and `running` the workers are told to save and end, with which the call returns; what is left of
    them after `_SAVING_SEC` is ended. Outside, KeyboardInterrupt is raised where the program stands. Enter it after `ray.init`,
    which installs a SIGTERM handler of its own.
    """

    def __init__(self, say):
        self.asked, self._over = threading.Event(), threading.Event()
        self._say = say
        self._end: Callable[[], None] | None = None  # how what runs is ended, while something does

    def __enter__(self) -> Interruptible:
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

    def running(self, run: Callable[[], None]) -> None:
        """``run()``, in a thread, as Ray Train replaces the handlers of the main one; KeyboardInterrupt where it did not end in
        time."""
        raised: list[BaseException] = []

        def guarded() -> None:
            try:
                run()
            except BaseException as error:  # for the main thread
                raised.append(error)

        thread = threading.Thread(target=guarded, name="run", daemon=True)
        thread.start()
        self._until_over(thread.join, lambda: os.kill(os.getpid(), signal.SIGTERM))
        if raised:
            raise raised[0]

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
        again = self.asked.is_set()
        self.asked.set()
        if self._end is None or again:
            raise KeyboardInterrupt
        self._say("stopping: what is being trained saves a checkpoint (a second time ends it at once)")
        threading.Thread(target=self._ask, args=(self._end,), name="stopping", daemon=True).start()

    def _ask(self, end: Callable[[], None]) -> None:
        """Not in the handler itself, which may have broken in on a call of Ray's."""
        from uvar_tune.orchestration.stop_word import give_stop_word

        give_stop_word()
        if not self._over.wait(_SAVING_SEC):
            end()
