"""Whether Ray still runs: without it a driver waits for answers that never come."""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from uvar_tune.errors import FAILED, InfrastructureError

_POLL_SEC = 1.0
_UNREACHABLE = (errno.ECONNREFUSED, errno.EHOSTUNREACH)
_abort: Callable[[InfrastructureError], None] | None = None


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """A TCP endpoint of Ray on which a study depends.

    Args:
        name: in a message.
        address: HOST:PORT.
        timeout_sec: for which it may be unreachable, e.g. while it is restarted.
    """

    name: str
    address: str
    timeout_sec: float

    def is_reachable(self) -> bool:
        """Whether it accepts a connection. A busy machine, or a process without a free socket, proves nothing."""
        try:
            _connect(self.address)
            return True
        except OSError as error:
            return error.errno not in _UNREACHABLE


def _connect(address: str) -> None:
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()


def wait_for_port(address: str, timeout_sec: float) -> None:
    """Wait until HOST:PORT accepts a connection. Addresses of other forms are left to Ray.

    Ray itself tries an address at which nobody listens for a quarter of an hour.

    Raises:
        ConnectionError: nobody listened within the time.
        ValueError: the port is not a number.
    """
    if ":" not in address:
        return
    deadline = time.monotonic() + timeout_sec
    while True:
        try:
            return _connect(address)
        except OSError as error:
            if time.monotonic() >= deadline:
                raise ConnectionError(error.strerror or str(error)) from error
        time.sleep(1)


def abort_process(error: InfrastructureError) -> NoReturn:
    """End this process with one line and exit code 1, whatever its threads wait for."""
    try:
        print(f"error: {error}", file=sys.stderr, flush=True)  # noqa: T201 - the process ends here
    finally:
        os._exit(FAILED)


def set_abort(abort: Callable[[InfrastructureError], None] | None) -> None:
    """Choose what happens when Ray is lost: commands pass `abort_process`; None (the default) raises in the caller."""
    global _abort
    _abort = abort


class LostRay:
    """How the loss of Ray reaches the thread that uses it.

    The thread may wait inside Ray for an answer that never comes. A command ends its process. In a library the thread
    is interrupted like by Ctrl-C, and `raise_if_lost` turns that into the error.

    Attributes:
        error: why Ray is lost; None while it is not.
    """

    def __init__(self):
        self.error: InfrastructureError | None = None
        self._caller = threading.current_thread()

    def report(self, error: InfrastructureError) -> None:
        """End or interrupt the caller; called from the thread of a monitor."""
        self.error = self.error or error
        if _abort is not None:
            _abort(error)
        elif self._caller is threading.main_thread():
            signal.pthread_kill(self._caller.ident, signal.SIGINT)
        else:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(self._caller.ident), ctypes.py_object(KeyboardInterrupt)
            )

    def raise_if_lost(self) -> None:
        """Raises:
        InfrastructureError: Ray is lost.
        """
        if self.error is not None:
            raise self.error from None


class RayHealthMonitor:
    """Context manager that reports, from a thread, an endpoint that has been unreachable for too long.

    Ray itself ends a driver some time after it lost the head, and never one that lost the raylet of its own node, both
    without a message. Everything that a study knows is on disk at any moment, so nothing has to be saved.

    Args:
        endpoints: to watch.
        report: gets the error.
    """

    def __init__(self, *endpoints: Endpoint, report: Callable[[InfrastructureError], None]):
        self._endpoints, self._report = endpoints, report
        self._closed = threading.Event()

    def __enter__(self) -> RayHealthMonitor:
        self._thread = threading.Thread(target=self._watch, name="ray-health", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        reached = dict.fromkeys(self._endpoints, time.monotonic())
        while not self._closed.wait(_POLL_SEC):
            for endpoint in self._endpoints:
                if endpoint.is_reachable():
                    reached[endpoint] = time.monotonic()
                elif time.monotonic() - reached[endpoint] > endpoint.timeout_sec and not self._closed.is_set():
                    message = (
                        f"{endpoint.name} at {endpoint.address} is gone; once it is back, the same command continues"
                    )
                    return self._report(InfrastructureError(message))
