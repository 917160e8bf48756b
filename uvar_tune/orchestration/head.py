"""Whether the head of Ray still lives: a driver without it would wait for answers that never come."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time

from uvar_tune.errors import FAILED

_EVERY_SEC = 1.0


class HeadWatch:
    """While it lasts, ends this process with one clear line when nobody has listened at the head's address for a while.

    Ray itself ends a driver some time after it lost the head, without a word, and nothing that the main thread waits for
    comes back before. What the study knows lies on disk at any moment, so there is nothing to save.

    Args:
        address: HOST:PORT of Ray's global control service.
        patience_sec: how long it may be away; a head that is restarted in time goes unnoticed.
    """

    def __init__(self, address: str, patience_sec: float):
        host, _, port = address.rpartition(":")
        self._place, self._patience_sec = (host.strip("[]"), int(port)), patience_sec
        self._over = threading.Event()

    def __enter__(self) -> HeadWatch:
        self._thread = threading.Thread(target=self._watch, name="head", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        seen = time.monotonic()
        while not self._over.wait(_EVERY_SEC):
            if self._listens():
                seen = time.monotonic()
            elif time.monotonic() - seen > self._patience_sec:
                break
        if not self._over.is_set():
            print(f"error: Ray's head at {self._place[0]}:{self._place[1]} is gone; once it is back, the same command continues",
                  file=sys.stderr, flush=True)
            os._exit(FAILED)

    def _listens(self) -> bool:
        try:
            with socket.create_connection(self._place, timeout=5):
                return True
        except TimeoutError:
            return True  # a busy machine; a head that is cut off is noticed by Ray
        except OSError:
            return False
