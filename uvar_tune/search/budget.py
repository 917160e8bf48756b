"""What a study has spent: GPU hours, and hours during which trials ran, over all its drivers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from uvar_tune.config.schema import Config


@dataclass(frozen=True)
class Spent:
    """Hours that attempts took."""

    gpu_hours: float
    wall_hours: float


class Ledger:
    """The cost of attempts as they end: two sums, however many there were.

    Args:
        spans: of the attempts that had ended before, from a to b (seconds).
    """

    def __init__(self, spans: Iterable[tuple[float, float]]):
        cost = spent(spans, gpus=1.0)
        self._busy_sec, self._wall_sec = 3600 * cost.gpu_hours, 3600 * cost.wall_hours
        self._counted = float(
            "-inf"
        )  # up to when the wall time is in the sum; from there on the running attempts give it

    def end(self, start: float, end: float, flying: Iterable[float]) -> None:
        """An attempt has ended; ``flying``: when those began that go on."""
        until = min(flying, default=end)
        self._busy_sec += end - start
        self._wall_sec += max(0.0, until - max(start, self._counted))
        self._counted = max(self._counted, until)

    def cost(self, flying: Iterable[float], now: float, gpus: float) -> Spent:
        """What it was up to now, each attempt on ``gpus`` GPUs; idle gaps cost no wall time."""
        flying = list(flying)
        wall_sec = self._wall_sec + max(0.0, now - max(min(flying, default=now), self._counted))
        return Spent((self._busy_sec + sum(now - start for start in flying)) * gpus / 3600, wall_sec / 3600)


def spent(spans: Iterable[tuple[float, float]], gpus: float) -> Spent:
    """The cost of attempts that lasted from a to b (seconds), each on ``gpus`` GPUs; idle gaps cost no wall time."""
    busy_sec = wall_sec = 0.0
    reached = float("-inf")
    for start, end in sorted(spans):
        busy_sec += max(0.0, end - start)
        wall_sec += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return Spent(busy_sec * gpus / 3600, wall_sec / 3600)


def exhausted(config: Config, cost: Spent) -> str | None:
    """Which budget is used up, in words; None while there is some left of each."""
    for key, used in (("max_gpu_hours", cost.gpu_hours), ("max_wall_time", cost.wall_hours)):
        limit = getattr(config.study, key)
        if limit is not None and used >= limit:
            return f"study.{key} {limit:g} is used up ({used:.2f} hours); a larger one continues the study"
    return None
