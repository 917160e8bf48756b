"""The few ways in which things fail, as types (a failure has a defined meaning for the sampler and for the exit code)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130  # exit codes


class UvarError(Exception):
    """Base of all errors that the package raises on purpose."""


class ConfigError(UvarError, ValueError):
    """Something a user controls is wrong. Commands print it as one line on stderr and exit with code 2.

    Args:
        message: the value and the rule it breaks.
        where: file and key, or argument, in which the value stands.
        nearest: the nearest valid choice.
    """

    def __init__(self, message: str, *, where: str | None = None, nearest: str | None = None):
        self.message, self.where, self.nearest = (
            " ".join(message.splitlines()),
            where,
            nearest,
        )  # a key may hold a newline
        text = f"{where}: {self.message}" if where else self.message
        super().__init__(f"{text}; did you mean {nearest!r}?" if nearest else text)

    def __reduce__(self):
        return _rebuild_config_error, (type(self), self.message, self.where, self.nearest)


def _rebuild_config_error(cls, message, where, nearest):
    return cls(message, where=where, nearest=nearest)


class StepFailed(UvarError):
    """A training cannot go on: a typed outcome of a trial. ``images`` were seen before the step that failed."""

    def __init__(self, message: str, *, images: int = 0):
        self.images = images
        super().__init__(message)

    def __reduce__(self):
        return _rebuild_step_failed, (type(self), str(self), self.images)


def _rebuild_step_failed(cls, message, images):
    return cls(message, images=images)


class Diverged(StepFailed):
    """Training left the finite numbers: never a score."""


class OutOfMemory(StepFailed):
    """An allocation was refused."""


class InfrastructureError(UvarError):
    """What a study stands on is gone for now (room on its disk, its Ray, its storage). Commands print it as one line and exit
    with code 1; nothing is told of the trials in flight, and the same command continues.
    """


def first_line(error: BaseException) -> str:
    """The first line of what was said; the kind of error where nothing was."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what it was raised for, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def nearest(value: object, choices: Iterable[object]) -> str | None:
    """The choice spelled most like ``value``, or None where nothing is near."""
    found = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1, cutoff=0.5)
    return found[0] if found else None


def choose(value, choices: Iterable, what: str, where: str | None = None):
    """``value`` if it is one of ``choices``; else a ConfigError that lists them and names the nearest."""
    options = list(choices)
    if value in options:
        return value
    listed = ", ".join(str(option) for option in options)
    raise ConfigError(f"unknown {what} {value!r} (one of: {listed})", where=where, nearest=nearest(value, options))
