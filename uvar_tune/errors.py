"""The kinds of failure, as exceptions: each has one meaning for the sampler and for the exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import TypeVar

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130  # exit codes of commands

T = TypeVar("T")


class UvarError(Exception):
    """Base class of all errors that this package raises deliberately."""


class ConfigError(UvarError, ValueError):
    """Invalid input. Commands print it as one line on stderr and exit with code 2.

    Args:
        message: the value and the rule that it breaks.
        where: file and key, or argument, that holds the value.
        nearest: the nearest valid choice.
    """

    def __init__(self, message: str, *, where: str | None = None, nearest: str | None = None):
        self.message = " ".join(message.splitlines())  # a key may hold a newline
        self.where, self.nearest = where, nearest
        text = f"{where}: {self.message}" if where else self.message
        super().__init__(f"{text}; did you mean {nearest!r}?" if nearest else text)

    def __reduce__(self):
        return _rebuild_config_error, (type(self), self.message, self.where, self.nearest)


def _rebuild_config_error(cls, message, where, nearest):
    return cls(message, where=where, nearest=nearest)


class StepFailed(UvarError):
    """A training step failed and training cannot continue.

    Args:
        message: what failed.
        images: training images before that step.
    """

    def __init__(self, message: str, *, images: int = 0):
        self.images = images
        super().__init__(message)

    def __reduce__(self):
        return _rebuild_step_failed, (type(self), str(self), self.images)


def _rebuild_step_failed(cls, message, images):
    return cls(message, images=images)


class Diverged(StepFailed):
    """A loss, gradient or sample is not finite. It never becomes a score."""


class OutOfMemory(StepFailed):
    """An allocation failed."""


class InfrastructureError(UvarError):
    """Disk space, Ray or the storage is unavailable for now; nothing is recorded of the running trials.

    Commands print it as one line and exit with code 1. The same command resumes.
    """


def first_line(error: BaseException) -> str:
    """The first line of the message, or the type of an error without one."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, its cause, the cause of that, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def nearest(value: object, choices: Iterable[object]) -> str | None:
    """The choice whose spelling is most similar to ``value``; None if none is similar."""
    matches = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1, cutoff=0.5)
    return matches[0] if matches else None


def choose(value: T, choices: Iterable[T], kind: str, where: str | None = None) -> T:
    """The value, if it is one of the choices.

    Args:
        value: the requested choice.
        choices: the valid ones.
        kind: what they are, for the message.
        where: file and key, or argument, that holds the value.

    Raises:
        ConfigError: it is none of them; lists them and names the nearest.
    """
    options = list(choices)
    if value in options:
        return value
    listed = ", ".join(str(option) for option in options)
    raise ConfigError(f"unknown {kind} {value!r} (one of: {listed})", where=where, nearest=nearest(value, options))
