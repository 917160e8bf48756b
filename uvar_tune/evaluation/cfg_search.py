"""The search over inference parameters on one checkpoint: no retraining, few scores.

Guidance, its ramp, temperature and truncation can be changed on a trained network, so every checkpoint is judged at its own
best point. All points are sampled under the same seeds A (common random numbers: the curve is deterministic, differences
between points are not sampling luck); the best observed point is then told on fresh seeds B, so that its choice does not
flatter the value. One axis: coarse points, then golden section around the best. Several: a Gaussian process over the points
so far and its expected improvement, since guidance and temperature sharpen together and cannot be tuned one by one.

What is asked depends on the axes and on what was told alone: one process may search and broadcast its points, and an
interrupted search repeats itself when told the same again.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy  # whose parts are loaded when they are used

from uvar_tune.errors import ConfigError, choose
from uvar_tune.evaluation.axis import Axis

_GOLDEN = (3 - math.sqrt(5)) / 2  # 0.382: the share of the longer side at which golden section cuts
_WORTH = 0.005  # a rise, or an expected improvement, below this share of the best value is not worth another score
_SPREAD = 256  # places at which the expected improvement is looked up, besides those around the best


@dataclass(frozen=True)
class Profile:
    """What was scored and what was chosen.

    Attributes:
        points: every score in order: {parameter → value, "seeds": "a" or "b", "value"}.
        chosen: parameter → value of the best point on seeds A.
        value: its score on seeds B, the one to report; value_a: on seeds A, which the choice flatters; None where the
            budget left no score for A.
        at_bound: parameters whose best value is the end of their range, so that a better one may lie beyond.
    """

    points: tuple[dict[str, Any], ...]
    chosen: dict[str, float]
    value: float
    value_a: float | None
    at_bound: tuple[str, ...]
    direction: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def curve(self, name: str = "cfg_scale") -> list[tuple[float, float]]:
        """(value of the parameter, score on seeds A) of the points that differ from the chosen one in ``name`` at most."""
        others = {key: value for key, value in self.chosen.items() if key != name}
        return sorted(
            (point[name], point["value"])
            for point in self.points
            if point["seeds"] == "a" and all(point[key] == value for key, value in others.items())
        )


class InferenceSearch:
    """Ask and tell: `ask` until it answers None, `tell` each score, then `result`.

    Args:
        axes: what is searched, the most important first.
        direction: of the score, minimize or maximize.
        budget: scores at most, the last one on seeds B among them; 1 tells the start itself.

    Raises:
        ConfigError: no axis, a name twice, an unknown direction, or a budget below 1.
    """

    def __init__(self, axes: Sequence[Axis], *, direction: str = "minimize", budget: int = 9):
        names = [axis.name for axis in axes]
        if not names or len(set(names)) < len(names) or {"seeds", "value"} & set(names):
            raise ConfigError(f"{names} are no parameters to search: at least one, each once", where="profile")
        if budget < 1:
            raise ConfigError(f"{budget} scores: at least 1 is needed", where="profile.budget", nearest="1")
        self.direction = choose(direction, ("minimize", "maximize"), "direction", where="profile")
        self.axes, self._budget = tuple(axes), budget
        self._sign = 1.0 if direction == "minimize" else -1.0
        self._told: list[dict[str, Any]] = []
        self._pending: dict[str, Any] | None = None

    def ask(self) -> dict[str, Any] | None:
        """The next point with its ``seeds``, the same until it is told; None when all is told."""
        if self._pending is None and not self._finished():
            point = self._next() if len(self._told) < self._budget - 1 else None
            self._pending = {**(point or self.chosen()), "seeds": "a" if point else "b"}
        return self._pending and dict(self._pending)

    def tell(self, point: dict[str, Any], value: float) -> None:
        """The score of the point asked.

        Raises:
            ValueError: another point, or not a finite score (a network without one has no profile).
        """
        if self._pending is None or point != self._pending:
            raise ValueError(f"{point} was not asked")
        if not math.isfinite(value):
            raise ValueError(f"{value} at {point} is not a score")
        self._told.append({**point, "value": float(value)})
        self._pending = None

    def chosen(self) -> dict[str, Any]:
        """The best point observed on seeds A, the first of equals; the start before any."""
        row = self._best()
        return {axis.name: row[axis.name] if row else axis.start for axis in self.axes}

    def result(self) -> Profile:
        """What the search found; only when `ask` has answered None."""
        if not self._finished():
            raise ValueError("the chosen point has not been told on seeds b yet")
        chosen, best, last = self.chosen(), self._best(), self._told[-1]
        return Profile(
            points=tuple(self._told),
            chosen=chosen,
            value=last["value"],
            value_a=best and best["value"],
            at_bound=tuple(axis.name for axis in self.axes if best and axis.at_bound(chosen[axis.name])),
            direction=self.direction,
        )

    def _finished(self) -> bool:
        return bool(self._told) and self._told[-1]["seeds"] == "b"

    def _best(self) -> dict[str, Any] | None:
        return min(
            (row for row in self._told if row["seeds"] == "a"), key=lambda row: self._sign * row["value"], default=None
        )

    def _next(self) -> dict[str, Any] | None:
        """The next point on seeds A; None where another score is not worth it."""
        units = [[axis.to_unit(row[axis.name]) for axis in self.axes] for row in self._told]
        losses = [self._sign * row["value"] for row in self._told]
        known = {tuple(row[axis.name] for axis in self.axes) for row in self._told}
        if len(self.axes) == 1:
            proposals = _line(self.axes[0], [unit for (unit,) in units], losses)
        else:
            proposals = _surface(self.axes, np.array(units), np.array(losses), self._budget - 1)
        for proposal in proposals:
            values = tuple(axis.from_unit(float(unit)) for axis, unit in zip(self.axes, proposal, strict=True))
            if values not in known:
                return dict(zip((axis.name for axis in self.axes), values, strict=True))
        return None


def profile(
    score: Callable[[dict[str, Any], str], float], axes: Sequence[Axis], *, direction: str = "minimize", budget: int = 9
) -> Profile:
    """Search with a callback ``score(point, seeds)``, ``seeds`` being "a" or "b"; arguments as `InferenceSearch`."""
    search = InferenceSearch(axes, direction=direction, budget=budget)
    while (point := search.ask()) is not None:
        search.tell(point, score({key: value for key, value in point.items() if key != "seeds"}, point["seeds"]))
    return search.result()


def _line(axis: Axis, units: list[float], losses: list[float]) -> list[tuple[float]]:
    """One axis: first the coarse points (all choices), then one at a time beside the best point seen."""
    first = (axis.start, *(axis.choices or axis.coarse or (axis.low, axis.high)))
    waiting = [(axis.to_unit(value),) for value in first if axis.to_unit(value) not in units]
    if waiting or axis.choices:
        return waiting
    order = np.argsort(units, kind="stable")
    place = _beside_best(np.array(units)[order].tolist(), np.array(losses)[order].tolist())
    return [] if place is None else [(place,)]


def _beside_best(places: list[float], heights: list[float]) -> float | None:
    """A step outwards where the lowest of the sorted places is an end and [0, 1] goes on, else a golden cut of the longer
    side of the bracket around it (Kiefer 1953); None where the bracket is as good as flat."""
    best = min(range(len(places)), key=heights.__getitem__)
    here, low = places[best], heights[best]
    left, right = places[max(best - 1, 0)], places[min(best + 1, len(places) - 1)]
    stride = (right - left) * (1 - _GOLDEN) / _GOLDEN
    if best == len(places) - 1 and here < 1:
        return min(1.0, here + stride)
    if best == 0 and here > 0:
        return max(0.0, here - stride)
    if max(heights[max(best - 1, 0) : best + 2]) - low <= _WORTH * abs(low):
        return None
    return here + _GOLDEN * (right - here) if right - here >= here - left else here - _GOLDEN * (here - left)


def _surface(axes: Sequence[Axis], units_ND: np.ndarray, losses_N: np.ndarray, budget: int) -> list[np.ndarray]:
    """Several axes: the start and a Sobol net over half of the budget, then the places of most expected improvement."""
    start_D = np.array([axis.to_unit(axis.start) for axis in axes])
    net = min(budget // 2, 2 * len(axes) + 1)
    spread_PD = _sobol(len(axes))
    if len(losses_N) == 0:
        return [start_D]
    if len(losses_N) < net:
        return list(spread_PD[len(losses_N) - 1 :])
    best_D = units_ND[np.argmin(losses_N)]
    near_PD = np.clip(best_D + 0.3 * (spread_PD - 0.5), 0, 1)
    places_PD = _grid(axes, np.concatenate([spread_PD, near_PD]))
    gain_P = _expected_improvement(units_ND, losses_N, places_PD)
    order = np.argsort(-gain_P, kind="stable")
    return [] if gain_P[order[0]] <= _WORTH * abs(losses_N.min()) / 2 else list(places_PD[order])


def _sobol(dimensions: int) -> np.ndarray:
    return scipy.stats.qmc.Sobol(dimensions, scramble=True, rng=1).random(_SPREAD)


def _grid(axes: Sequence[Axis], places_PD: np.ndarray) -> np.ndarray:
    """The places that rounding and choices admit."""
    return np.array(
        [
            [axis.to_unit(axis.from_unit(float(unit))) for axis, unit in zip(axes, place_D, strict=True)]
            for place_D in places_PD
        ]
    )


def _expected_improvement(units_ND: np.ndarray, losses_N: np.ndarray, places_PD: np.ndarray) -> np.ndarray:
    """Expected improvement on the lowest loss under a Gaussian process (Jones et al. 1998), in the unit of the loss."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern

    kernel = ConstantKernel(1.0, (0.1, 100.0)) * Matern(np.full(units_ND.shape[1], 0.5), (0.4, 4.0), nu=2.5)
    process = GaussianProcessRegressor(kernel, alpha=1e-4, normalize_y=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a length at its bound is meant: few points say little
        mean_P, sd_P = process.fit(units_ND, losses_N).predict(places_PD, return_std=True)
    gain_P = losses_N.min() - mean_P
    score_P = gain_P / np.maximum(sd_P, 1e-12)
    return gain_P * scipy.stats.norm.cdf(score_P) + sd_P * scipy.stats.norm.pdf(score_P)
