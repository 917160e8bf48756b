"""Whether Ray still lives where the driver holds on to it: without it a driver would wait for answers that never
come.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import socket
import sys
import threading
import time
from typing import NoReturn

from uvar_tune.errors import FAILED

_EVERY_SEC = 1.0
_AWAY = (errno.ECONNREFUSED, errno.EHOSTUNREACH)


@dataclasses.dataclass(frozen=True)
class Place:
    """Something of Ray that listens, and without which nothing goes on.

    Args:
        what: its name in a message.
        address: HOST:PORT.
        patience_sec: how long it may be away; one that is restarted in time goes unnoticed.
    """

    what: str
    address: str
    patience_sec: float

    def listens(self) -> bool:
        try:
            _connect(self.address)
            return True
        except OSError as error:  # a busy machine, or one without a free socket, says nothing of Ray
            return error.errno not in _AWAY


def _connect(address: str) -> None:
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()


def answering(address: str, patience_sec: float) -> None:
    """Return once somebody listens at an address of a head, HOST:PORT; any other kind of address is Ray's to find.

    Ray itself tries an address at which nobody listens for a quarter of an hour.

    Raises:
        ConnectionError: nobody listened there in all the time.
        ValueError: the address has a port that is none.
    """
    if ":" not in address:
        return
    deadline = time.monotonic() + patience_sec
    while True:
        try:
            return _connect(address)
        except OSError as error:
            if time.monotonic() >= deadline:
                raise ConnectionError(error.strerror or str(error)) from error
        time.sleep(1)


class RayHealthMonitor:
    """While it lasts, ends this process with one clear line when nobody has listened at one of the places for too long.

    Ray itself ends a driver some time after it lost the head, and never one that lost the raylet of its own node, both
    without a word, and nothing that the main thread waits for comes back before. What the study knows lies on disk at
    any moment, so there is nothing to save.
    """

    def __init__(self, *places: Place):
        self._places = places
        self._over = threading.Event()

    def __enter__(self) -> RayHealthMonitor:
        self._thread = threading.Thread(target=self._watch, name="head", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        seen = dict.fromkeys(self._places, time.monotonic())
        while not self._over.wait(_EVERY_SEC):
            for place in self._places:
                if place.listens():
                    seen[place] = time.monotonic()
                elif time.monotonic() - seen[place] > place.patience_sec and not self._over.is_set():
                    leave(f"{place.what} at {place.address} is gone; once it is back, the same command continues")


def leave(why: object) -> NoReturn:
    """End this process, whose main thread waits for what never comes, with one line."""
    try:
        print(f"error: {why}", file=sys.stderr, flush=True)
    finally:
        os._exit(FAILED)
