"""No room to write: how it is recognised, in an error or in the words of another process."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from uvar_tune.errors import InfrastructureError, UvarError, causes

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def raise_on_disk_full(directory: Path):
    """Raises:
    InfrastructureError: instead of whatever said, inside, that a disk or a quota is full.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UvarError) or not (why := no_room(error)):
            raise
        raise lost(directory, why) from error


def lost(directory: Path, why: str) -> InfrastructureError:
    return InfrastructureError(f"{directory}: {why}. Make room, then the same command continues")


def no_room(error: BaseException) -> str | None:
    """The system's words for a full disk or quota, where ``error``, or what it was raised for, says that."""
    for one in causes(error):
        if isinstance(one, OSError) and one.errno in _FULL:
            return one.strerror
        if why := disk_full_reason(str(one)):
            return why
    return None


def disk_full_reason(reason: str) -> str | None:
    """The system's words for a full disk or quota, where ``reason`` holds them."""
    return next((os.strerror(number) for number in _FULL if os.strerror(number) in reason), None)
