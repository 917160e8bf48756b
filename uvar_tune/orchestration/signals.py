"""Ctrl-C, SIGTERM and `ray job stop` end a study in order: the first signal asks, a second one does not wait."""

from __future__ import annotations

import os
import signal
import threading


class Interruptible:
    """While it lasts, SIGINT and SIGTERM are noted in ``asked`` and end what runs.

    Inside `running_tune` Tune is told by its own signal and returns (where that came before it listened, it is given nothing to
    run); outside, KeyboardInterrupt is raised where the program stands. Enter it after `ray.init`, which installs a SIGTERM
    handler of its own.
    """

    def __init__(self, say):
        self.asked = threading.Event()
        self._say, self._tune = say, False

    def __enter__(self) -> Interruptible:
        self._before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def running_tune(self, run):
        """The result of ``run()``, which a signal ends early."""
        os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
        signal.signal(signal.SIGUSR1, lambda *_: None)  # until Tune has its own: by default it would end the program
        self._tune = True
        try:
            return run()
        finally:
            self._tune = False

    def end(self) -> None:
        """Have Tune return, without a signal from outside."""
        self.asked.set()
        os.kill(os.getpid(), signal.SIGUSR1)

    def _stop(self, number: int, _frame) -> None:
        again = self.asked.is_set()
        self.asked.set()
        if self._tune and not again:
            self._say("stopping: the trials in flight keep their last checkpoints")
            self.end()
        else:
            raise KeyboardInterrupt
