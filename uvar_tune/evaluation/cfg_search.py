"""Search for the inference parameters of one checkpoint: no retraining, few scores.

Guidance, its ramp, temperature and truncation can be changed on a trained network, so every checkpoint is scored at its
own best point. All candidate points are sampled under the same selection seeds (common random numbers: differences
between points are not sampling noise). The best of them is scored again under evaluation seeds, which removes the
selection bias from the reported value.

With one axis the search scores coarse points, then golden sections around the best. With several it fits a Gaussian
process to the scores and maximises the expected improvement: guidance and temperature both sharpen the samples, so
they cannot be tuned one at a time.

A range is where a search begins, not where it ends: while the best value lies at an end of an axis that may be widened,
the axis is widened and up to `_EXTRA_SCORES` further points are scored. What is still at an end afterwards is reported
(`SearchResult.at_bound`). Ranges that a space file states are kept as they are.

A proposal depends only on the axes and on the scores so far. One process can search and broadcast the points, and an
interrupted search continues with the same points once its scores are reported again.

Legend: N scored points, D axes, P candidate points in the unit cube.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import scipy  # its submodules load on first use

from uvar_tune.config.schema import SAMPLING_BOUNDS, Config
from uvar_tune.config.space_entry import SpaceEntry
from uvar_tune.errors import ConfigError, choose
from uvar_tune.metrics import metric
from uvar_tune.seeds import EVALUATION, SELECTION

_GOLDEN = (3 - math.sqrt(5)) / 2  # 0.382, the fraction of the longer side at which golden section cuts
_MIN_GAIN = 0.005  # relative to the best value; a smaller rise or expected improvement is not worth another score
_WIDENINGS = 3  # times that an end of a range moves outwards, by half of the range each
_EXTRA_SCORES = 3  # beyond the budget, while the best value lies at an end
_CANDIDATES = 256  # points of the unit cube at which the expected improvement is evaluated, twice: global and local
_SCALES: dict[str, tuple[Callable[[float], float], Callable[[float], float]]] = {
    "linear": (float, float),
    "log": (math.log, math.exp),
    "log1p": (math.log1p, math.expm1),
}


@dataclass(frozen=True)
class Axis:
    """One inference parameter: a range or choices, and the scale on which distances are measured.

    Attributes:
        name: key of the parameter in a point.
        low: lower end of the range; unused with ``choices``.
        high: upper end of the range; unused with ``choices``.
        start: value before any search, always scored. One of ``choices`` if they are given.
        coarse: values that a search over this axis alone scores first, next to ``start``. Empty: both ends of the
            range.
        scale: linear, log, or log1p (a log that reaches 0, as guidance does).
        choices: values in their natural order (top-k, top-p) instead of a range.
        digits: decimals to which proposed values are rounded; 0 for whole numbers.
        limits: (low, high) up to which the range may be widened; None keeps it as it is.

    Raises:
        ConfigError: an empty range, a value outside of it, or fewer than two values to score.
    """

    name: str
    low: float = 0.0
    high: float = 1.0
    start: float = 0.0
    coarse: tuple[float, ...] = ()
    scale: str = "linear"
    choices: tuple[float, ...] = ()
    digits: int = 2
    limits: tuple[float, float] | None = None

    def __post_init__(self):
        choose(self.scale, _SCALES, "scale", where=self.name)
        if self.choices:
            choose(self.start, self.choices, "start", where=self.name)
            return
        if self.coarse and len({self.start, *self.coarse}) < 2:
            raise ConfigError(
                f"start and coarse are all {self.start:g}: at least two values are needed", where=self.name
            )
        if not self.low < self.high or (self.scale == "log" and self.low <= 0):
            raise ConfigError(f"{self.low:g} … {self.high:g} is not a {self.scale} range", where=self.name)
        for value in (self.start, *self.coarse):
            if not self.low <= value <= self.high:
                raise ConfigError(
                    f"{value:g} is outside {self.low:g} … {self.high:g}",
                    where=self.name,
                    nearest=f"{min(max(value, self.low), self.high):g}",
                )

    @classmethod
    def from_entry(cls, name: str, entry: SpaceEntry, start: float) -> Axis:
        """The axis of a `space:` entry of role inference; ``name`` without its section."""
        if entry.type == "categorical":
            return cls(name, start=start, choices=tuple(entry.choices))
        default = next((axis for axis in (CFG_SCALE, CFG_RAMP, TEMPERATURE) if axis.name == name), cls(name))
        whole = entry.type == "int"
        low, high = (int(entry.low), int(entry.high)) if whole else (entry.low, entry.high)
        inside = tuple(value for value in default.coarse if low < value < high)
        return cls(
            name,
            low=low,
            high=high,
            start=start,
            coarse=(low, *inside, high),
            digits=0 if whole else default.digits,
            scale="log" if entry.log else default.scale,
        )

    def to_unit(self, value: float) -> float:
        """The coordinate of a value in [0, 1]."""
        if self.choices:
            return self.choices.index(value) / max(len(self.choices) - 1, 1)
        forward, _ = _SCALES[self.scale]
        return (forward(value) - forward(self.low)) / (forward(self.high) - forward(self.low))

    def from_unit(self, unit: float) -> float:
        """The value at a coordinate in [0, 1].

        Given values (start, coarse, the ends of the range) come back exactly, all others rounded to ``digits``.
        """
        if self.choices:
            return self.choices[round(unit * (len(self.choices) - 1))]
        given = (self.start, *self.coarse, self.low, self.high)
        exact = next((value for value in given if self.to_unit(value) == unit), None)
        if exact is not None:
            return exact
        forward, backward = _SCALES[self.scale]
        value = backward(forward(self.low) + unit * (forward(self.high) - forward(self.low)))
        value = min(max(round(value, self.digits), self.low), self.high)
        return value if self.digits else int(value)

    def widened(self, values: Sequence[float], best: float) -> Axis:
        """The axis over a range that holds ``values``, and goes on beyond ``best`` if that lies at an end.

        Args:
            values: scored so far, at least one.
            best: the one with the best score.
        """
        if self.limits is None or self.choices:
            return self
        (forward, backward), low, high = _SCALES[self.scale], self.low, self.high
        step = (forward(high) - forward(low)) / 2
        for _ in range(_WIDENINGS):
            if max(values) > high or best == high:
                high = min(round(backward(forward(high) + step), self.digits), self.limits[1])
            if min(values) < low or (best == low and low > self.limits[0]):
                low = max(round(backward(forward(low) - step), self.digits), self.limits[0])
        return replace(self, low=low, high=high)

    def at_bound(self, value: float) -> bool:
        """Whether a value is an end of a range that could be wider; 0 and the ends of ``choices`` are final."""
        return not self.choices and (value == self.high or value == self.low != 0)


CFG_SCALE = Axis(  # 0 = off
    "cfg_scale",
    high=10.0,
    start=1.5,
    coarse=(0.0, 0.5, 3.0, 6.0),
    scale="log1p",
    limits=SAMPLING_BOUNDS["cfg_scale"],
)
# power of k/(K−1): 1 = VAR's linear ramp, 0 = constant
CFG_RAMP = Axis("cfg_ramp", high=2.0, start=1.0, limits=SAMPLING_BOUNDS["cfg_ramp"])
TEMPERATURE = Axis("temperature", low=0.7, high=1.4, start=1.0, scale="log", limits=(0.1, 10.0))


@dataclass(frozen=True)
class SearchResult:
    """The scores of a search and the point it selected.

    Attributes:
        points: all scores in order: {parameter: value, "seeds": "selection" or "evaluation", "value": score}.
        point: parameter → value of the best point under selection seeds.
        value: its score under evaluation seeds, the one to report.
        selection_value: its score under selection seeds, which has selection bias; None if the budget had none.
        at_bound: parameters whose selected value is an end of their range; a better one may be outside of it.
        direction: minimize or maximize.
    """

    points: tuple[dict[str, Any], ...]
    point: dict[str, float]
    value: float
    selection_value: float | None
    at_bound: tuple[str, ...]
    direction: str

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def curve(self, name: str = "cfg_scale") -> list[tuple[float, float]]:
        """(value of parameter ``name``, score) of the points under selection seeds that share all other parameters."""
        others = {key: value for key, value in self.point.items() if key != name}
        return sorted(
            (point[name], point["value"])
            for point in self.points
            if point["seeds"] == SELECTION and all(point[key] == value for key, value in others.items())
        )


class InferencePointSearch:
    """Ask-and-tell search over inference points.

    Call `ask` for a point and `tell` its score until `ask` returns None; then `result` holds the selected point.

    Args:
        axes: the searched parameters, the most important first.
        direction: of the score, minimize or maximize.
        budget: number of scores at most, including the last one under evaluation seeds, unless the best value lies at
            an end of a range. 1 scores the start alone.

    Raises:
        ConfigError: no axis, a repeated name, an unknown direction, or a budget below 1.
    """

    def __init__(self, axes: Sequence[Axis], *, direction: str = "minimize", budget: int = 9):
        names = [axis.name for axis in axes]
        if not names or len(set(names)) < len(names) or {"seeds", "value"} & set(names):
            raise ConfigError(f"axes {names}: at least one is needed, each once", where="inference search")
        if budget < 1:
            raise ConfigError(f"{budget} scores: at least 1 is needed", where="inference search", nearest="1")
        self.direction = choose(direction, ("minimize", "maximize"), "direction", where="inference search")
        self.axes, self._budget = tuple(axes), budget
        self._given_axes = self.axes
        self._sign = 1.0 if direction == "minimize" else -1.0
        self._scores: list[dict[str, Any]] = []
        self._pending: dict[str, Any] | None = None

    @classmethod
    def from_config(cls, config: Config, entries: Mapping[str, SpaceEntry]) -> InferencePointSearch:
        """The search of `inference.search`: over `inference.search_axes` and ``entries``, or none with `joint`.

        Args:
            config: its `study.metric` gives the direction of the score.
            entries: further inference parameters of the space, by name without the section. Each starts at the
                configuration's value, or at an end of its range if the range excludes that value.
        """
        inference = config.inference
        scales, joint = inference.search_cfg_scales, inference.search == "joint"
        start = inference.cfg_scale if joint else min(scales, key=lambda scale: abs(scale - inference.cfg_scale))
        guidance = Axis(
            "cfg_scale",
            low=min(scales[0], start),
            high=max(scales[-1], start),
            start=start,
            scale="log1p",
            coarse=() if joint else tuple(scales),
            limits=None if joint else CFG_SCALE.limits,
        )
        axes = {
            "cfg_scale": guidance,
            "temperature": replace(TEMPERATURE, start=inference.temperature),
            "cfg_ramp": replace(CFG_RAMP, start=inference.cfg_ramp),
        }
        for name, entry in entries.items():
            value = getattr(inference, name)
            axes[name] = Axis.from_entry(name, entry, start=value if entry.holds(value) else entry.edges()[0])
        searched = [guidance] if joint else [axes[name] for name in dict.fromkeys((*inference.search_axes, *entries))]
        budget = 1 if joint else len(scales) + inference.search_refinements + 1
        return cls(searched, direction=metric(config.study.metric).direction, budget=budget)

    def ask(self) -> dict[str, Any] | None:
        """The next point with its ``seeds``, the same until its score is reported; None when the search has ended."""
        if self._pending is None and not self._finished():
            point = self._next() if self._affords_another() else None
            self._pending = {**(point or self.best_point()), "seeds": SELECTION if point else EVALUATION}
        return self._pending and dict(self._pending)

    def tell(self, point: dict[str, Any], value: float) -> None:
        """Report the score of the point that `ask` returned.

        Raises:
            ValueError: another point, or a score that is not finite.
        """
        if self._pending is None or point != self._pending:
            raise ValueError(f"{point} is not the pending point")
        if not math.isfinite(value):
            raise ValueError(f"{value} at {point} is not a score")
        self._scores.append({**point, "value": float(value)})
        self._pending = None
        best = self.best_point()
        self.axes = tuple(
            axis.widened([row[axis.name] for row in self._scores], best[axis.name]) for axis in self._given_axes
        )

    def best_point(self) -> dict[str, Any]:
        """The best point under selection seeds, the first of equals; the start before any score."""
        row = self._best()
        return {axis.name: row[axis.name] if row else axis.start for axis in self.axes}

    def result(self) -> SearchResult:
        """The selected point and all scores.

        Raises:
            ValueError: the search has not ended yet.
        """
        if not self._finished():
            raise ValueError("the selected point has no score under evaluation seeds yet")
        point, best, last = self.best_point(), self._best(), self._scores[-1]
        return SearchResult(
            points=tuple(self._scores),
            point=point,
            value=last["value"],
            selection_value=best and best["value"],
            at_bound=tuple(axis.name for axis in self.axes if best and axis.at_bound(point[axis.name])),
            direction=self.direction,
        )

    def _finished(self) -> bool:
        return bool(self._scores) and self._scores[-1]["seeds"] == EVALUATION

    def _best(self) -> dict[str, Any] | None:
        rows = (row for row in self._scores if row["seeds"] == SELECTION)
        return min(rows, key=lambda row: self._sign * row["value"], default=None)

    def _affords_another(self) -> bool:
        """Whether the budget has another score under selection seeds; a few more while the optimum may be outside."""
        left = self._budget - 1 - len(self._scores)
        return left > 0 or (self._budget > 1 and left > -_EXTRA_SCORES and self._best_is_outermost())

    def _best_is_outermost(self) -> bool:
        """Whether the best value of a widened axis is the last that was scored in that direction."""
        best = self.best_point()
        for axis, given in zip(self.axes, self._given_axes, strict=True):
            values = [row[axis.name] for row in self._scores]
            above = axis.high > given.high and best[axis.name] == max(values)
            below = axis.low < given.low and best[axis.name] == min(values)
            if above or below:
                return True
        return False

    def _next(self) -> dict[str, Any] | None:
        """The next point under selection seeds; None if another score is not worth it."""
        units = [[axis.to_unit(row[axis.name]) for axis in self.axes] for row in self._scores]
        losses = [self._sign * row["value"] for row in self._scores]
        scored = {tuple(row[axis.name] for axis in self.axes) for row in self._scores}
        if len(self.axes) == 1:
            proposals = _propose_on_line(self.axes[0], [unit for (unit,) in units], losses)
        else:
            proposals = _propose_in_cube(self.axes, np.array(units), np.array(losses), self._budget - 1)
        for proposal in proposals:
            values = tuple(axis.from_unit(float(unit)) for axis, unit in zip(self.axes, proposal, strict=True))
            if values not in scored:
                return dict(zip((axis.name for axis in self.axes), values, strict=True))
        return None


def _propose_on_line(axis: Axis, units: list[float], losses: list[float]) -> list[tuple[float]]:
    """One axis: first the coarse values (or all choices), then one coordinate at a time next to the best."""
    first = (axis.start, *(axis.choices or axis.coarse or (axis.low, axis.high)))
    waiting = [(axis.to_unit(value),) for value in first if axis.to_unit(value) not in units]
    if waiting or axis.choices:
        return waiting
    order = np.argsort(units, kind="stable")
    unit = _golden_section(np.array(units)[order].tolist(), np.array(losses)[order].tolist())
    return [] if unit is None else [(unit,)]


def _golden_section(units: list[float], losses: list[float]) -> float | None:
    """The next coordinate given the sorted ones and their losses (Kiefer 1953).

    A step outwards if the lowest loss is at an end and [0, 1] goes on, else a golden cut of the longer side of the
    bracket around it. None if the losses of the bracket are as good as equal.
    """
    best = min(range(len(units)), key=losses.__getitem__)
    centre, lowest = units[best], losses[best]
    left, right = units[max(best - 1, 0)], units[min(best + 1, len(units) - 1)]
    stride = (right - left) * (1 - _GOLDEN) / _GOLDEN
    if best == len(units) - 1 and centre < 1:
        return min(1.0, centre + stride)
    if best == 0 and centre > 0:
        return max(0.0, centre - stride)
    if max(losses[max(best - 1, 0) : best + 2]) - lowest <= _MIN_GAIN * abs(lowest):
        return None
    if right - centre >= centre - left:
        return centre + _GOLDEN * (right - centre)
    return centre - _GOLDEN * (centre - left)


def _propose_in_cube(axes: Sequence[Axis], units_ND: np.ndarray, losses_N: np.ndarray, budget: int) -> list[np.ndarray]:
    """Several axes: the start, Sobol points for half of the budget, then points by expected improvement."""
    start_D = np.array([axis.to_unit(axis.start) for axis in axes])
    initial = min(budget // 2, 2 * len(axes) + 1)
    sobol_PD = _sobol(len(axes))
    if len(losses_N) == 0:
        return [start_D]
    if len(losses_N) < initial:
        return list(sobol_PD[len(losses_N) - 1 :])
    best_D = units_ND[np.argmin(losses_N)]
    near_PD = np.clip(best_D + 0.3 * (sobol_PD - 0.5), 0, 1)
    candidates_PD = _round_to_axes(axes, np.concatenate([sobol_PD, near_PD]))
    gain_P = _expected_improvement(units_ND, losses_N, candidates_PD)
    order = np.argsort(-gain_P, kind="stable")
    return [] if gain_P[order[0]] <= _MIN_GAIN * abs(losses_N.min()) / 2 else list(candidates_PD[order])


def _sobol(dimensions: int) -> np.ndarray:
    return scipy.stats.qmc.Sobol(dimensions, scramble=True, rng=1).random(_CANDIDATES)


def _round_to_axes(axes: Sequence[Axis], units_PD: np.ndarray) -> np.ndarray:
    """The coordinates of the values that rounding and choices admit."""
    return np.array(
        [
            [axis.to_unit(axis.from_unit(float(unit))) for axis, unit in zip(axes, unit_D, strict=True)]
            for unit_D in units_PD
        ]
    )


def _expected_improvement(units_ND: np.ndarray, losses_N: np.ndarray, candidates_PD: np.ndarray) -> np.ndarray:
    """Expected improvement on the lowest loss under a Gaussian process (Jones et al. 1998), in the unit of the loss."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern

    kernel = ConstantKernel(1.0, (0.1, 100.0)) * Matern(np.full(units_ND.shape[1], 0.5), (0.4, 4.0), nu=2.5)
    process = GaussianProcessRegressor(kernel, alpha=1e-4, normalize_y=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # few points leave a length scale at its bound, as intended
        mean_P, sd_P = process.fit(units_ND, losses_N).predict(candidates_PD, return_std=True)
    gain_P = losses_N.min() - mean_P
    score_P = gain_P / np.maximum(sd_P, 1e-12)
    return gain_P * scipy.stats.norm.cdf(score_P) + sd_P * scipy.stats.norm.pdf(score_P)
