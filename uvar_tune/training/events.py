"""What a training tells: the events of its generator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Progress:
    """Values since the last such event, averaged over steps and ranks.

    Attributes:
        images: seen so far.
        values: metric name → number, the same on every rank (but for images_per_sec).
    """

    images: int
    values: dict[str, float]


@dataclass(frozen=True)
class CheckpointEvent:
    """A moment at which the state is whole.

    Attributes:
        images: seen so far.
        state: gives what `train` needs as ``start`` (with ``ema``, the averaged weights, where there are any); to be
            called before the generator is asked for more.
        stopped: the training was asked to stop and ends here, before its length.
    """

    images: int
    state: Callable[[], dict[str, Any]]
    stopped: bool = False


@dataclass(frozen=True)
class TrainingWarning:
    """Something that a person should know and that does not end the training."""

    images: int
    text: str
