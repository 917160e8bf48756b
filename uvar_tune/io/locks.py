"""Exclusive file locks between processes. The kernel releases a lock when its holder exits, however it exits."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from pathlib import Path

from uvar_tune.errors import UvarError

_POLL_SEC = 0.2


class LockHeldError(UvarError):
    """Another process holds the lock.

    Args:
        path: the lock file.
        holder: description of the process that holds it, e.g. ``process 4711 on node3``; empty if unknown.
    """

    def __init__(self, path: Path, holder: str):
        self.path, self.holder = path, holder
        super().__init__(f"{path} is locked by {holder or 'another process'}")

    def __reduce__(self):
        return type(self), (self.path, self.holder)


def is_locked(path: str | Path) -> bool:
    """Whether a process holds the lock; False if there is no lock file or the file system has no locks."""
    try:
        with open(path, "rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


class FileLock:
    """An exclusive lock on the file ``path``, which is created next to what it protects and is never deleted.

    As a context manager it waits as long as it takes. The file holds a description of its last holder.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._handle = None

    @property
    def is_held(self) -> bool:
        """Whether this object holds the lock."""
        return self._handle is not None

    def acquire(self, timeout_sec: float | None = None) -> str | None:
        """Take the lock.

        Args:
            timeout_sec: how long to wait for another holder; 0 does not wait, None waits for ever.

        Returns:
            The description of the holder that was waited for (possibly empty), or None if the lock was free.

        Raises:
            LockHeldError: another process still holds the lock after ``timeout_sec``.
            OSError: the file cannot be written, or the file system has no locks.
        """
        if self._handle is not None:
            raise RuntimeError(f"{self.path} is already locked by this object")
        handle = self.path.open("a+", encoding="utf-8")
        try:
            previous = self._wait(handle, timeout_sec)
            handle.truncate(0)
            handle.write(f"process {os.getpid()} on {socket.gethostname()}")
            handle.flush()
        except BaseException:
            handle.close()
            raise
        self._handle = handle
        return previous

    def release(self) -> None:
        """Release the lock, also if a forked child still has the file open. No effect if it is not held."""
        if self._handle is not None:
            fcntl.flock(self._handle, fcntl.LOCK_UN)
            self._handle.close()
            self._handle = None

    def __enter__(self) -> FileLock:
        self.acquire()
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def _wait(self, handle, timeout_sec: float | None) -> str | None:
        deadline = None if timeout_sec is None else time.monotonic() + timeout_sec
        previous = None
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                handle.seek(0)
                previous = handle.read().strip()
            else:
                return previous
            if deadline is None:
                fcntl.flock(handle, fcntl.LOCK_EX)
                return previous
            if time.monotonic() >= deadline:
                raise LockHeldError(self.path, previous)
            time.sleep(_POLL_SEC)
