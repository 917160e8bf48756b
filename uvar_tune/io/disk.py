"""Full disks and exceeded quotas: recognised in exceptions and in messages of other processes."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from uvar_tune.errors import InfrastructureError, UvarError, causes

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def raise_on_disk_full(directory: Path) -> Iterator[None]:
    """Replace any error that was caused by a full disk or quota.

    Args:
        directory: named in the message.

    Raises:
        InfrastructureError: the disk or quota is full.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UvarError) or not (reason := disk_full_reason(error)):
            raise
        raise disk_full_error(directory, reason) from error


def disk_full_error(directory: Path, reason: str) -> InfrastructureError:
    """The error of a run that cannot write to ``directory``."""
    return InfrastructureError(f"{directory}: {reason}. Free some space, then the same command continues")


def disk_full_reason(error: BaseException | str) -> str | None:
    """The message of the system if ``error``, or one of its causes, is a full disk or quota, else None.

    Args:
        error: an exception, or the message of one that was raised in another process.
    """
    if isinstance(error, str):
        return next((os.strerror(number) for number in _FULL if os.strerror(number) in error), None)
    for cause in causes(error):
        if isinstance(cause, OSError) and cause.errno in _FULL:
            return cause.strerror
        if reason := disk_full_reason(str(cause)):
            return reason
    return None
