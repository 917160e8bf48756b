"""The paper's study figure: parallel coordinates over λ1, λ2 (log), reference and CFG, to the objective (colour).

Every axis runs from 0 to 1. A value that the axis does not hold is drawn below it, at `OFF`: λ = 0 on a log axis, or a
parameter that does not affect the trial. The last axis is the study metric, better values above, in the line colours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.lines import Line2D

from uvar_tune.analysis.results import OF_LAMBDA_1, StudyResults, TrialResult
from uvar_tune.reporting import fields
from uvar_tune.reporting.figures import BASELINE, BEST, FAINT, INK, Values, canvas, save, styled

OFF = -0.14
_JITTER = 0.035  # height over which lines through one category are spread


class Axis(NamedTuple):
    """One vertical axis.

    Attributes:
        name: of the parameter.
        place: value → height.
        ticks: (height, text).
        spread: values at which lines are drawn side by side.
    """

    name: str
    place: Callable[[Any], float]
    ticks: list[tuple[float, str]]
    spread: frozenset = frozenset()


def study_figure(results: StudyResults, path: Path) -> Path:
    """Draw all trials with a score; the baseline dashed."""
    ranked = results.ranked()
    values = Values([trial.value for trial in ranked], results.direction)
    names = [
        *fields.parameters(results),
        *([fields.CFG] if any(fields.CFG in trial.params for trial in ranked) else []),
    ]
    axes_list = [axis_of(results, name, ranked) for name in names]
    with styled():
        figure = canvas(max(9.0, 1.9 * (len(names) + 1)), 5.2)
        axes = figure.add_subplot()
        axes.set_axis_off()
        for x, axis in enumerate(axes_list):
            _draw_axis(
                axes, x, axis, fields.label(results, axis.name), bool(results.space.get(axis.name, {}).get("when"))
            )
        _draw_objective(axes, len(names), results, values)
        _draw_trials(axes, axes_list, ranked, results, values)
        axes.set(xlim=(-0.35, len(names) + 0.5), ylim=(OFF - 0.1, 1.16))
        axes.legend(
            handles=_legend(results, ranked), loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=3, fontsize=9
        )
        return save(figure, path)


def _draw_trials(axes, axes_list, ranked, results: StudyResults, values: Values) -> None:
    alpha = min(0.85, max(0.1, 25 / len(ranked)))
    for rank, trial in reversed(list(enumerate(ranked))):  # the best above the others
        heights = [height_of(results, axis, trial) for axis in axes_list] + [values.position(trial.value)]
        if trial is results.best:
            style = {"color": BEST, "lw": 3.0, "alpha": 1.0, "zorder": 5}
        elif trial is results.baseline:
            style = {"color": BASELINE, "lw": 2.2, "ls": (0, (4, 2)), "alpha": 1.0, "zorder": 6}
        else:
            near = rank < min(20, max(3, len(ranked) // 20))
            style = {
                "color": values.colour(trial.value),
                "lw": 1.3,
                "alpha": 0.85 if near else alpha,
                "zorder": 3 if near else 2,
            }
        axes.plot(range(len(heights)), heights, solid_joinstyle="round", **style)
    baseline = results.baseline
    if results.best is baseline:
        heights = [height_of(results, axis, baseline) for axis in axes_list] + [values.position(baseline.value)]
        axes.plot(range(len(heights)), heights, color=BASELINE, lw=1.4, ls=(0, (4, 2)), zorder=6)


def height_of(results: StudyResults, axis: Axis, trial: TrialResult) -> float:
    """Where a trial's line crosses an axis: 0 to 1, or `OFF`."""
    if not fields.applies(results, trial, axis.name):
        return OFF
    height = axis.place(trial.params[axis.name])
    return min(1.0, max(0.0, height + _shift(axis, trial))) if height > -1e-6 else OFF


def _shift(axis: Axis, trial: TrialResult) -> float:
    """A small offset if several trials have the value (golden-ratio steps separate neighbours)."""
    crowded = trial.params[axis.name] in axis.spread
    return _JITTER * (2 * ((0.5 + trial.number * 0.618034) % 1) - 1) if crowded else 0.0


def axis_of(results: StudyResults, name: str, ranked: list[TrialResult]) -> Axis:
    """The axis of a parameter, on the scale on which it was searched."""
    entry = results.space.get(name, {})
    used = [trial.params[name] for trial in ranked if fields.applies(results, trial, name)]
    if entry.get("type") == "categorical":
        choices = list(entry["choices"])
        heights = np.linspace(0.06, 0.94, len(choices)) if len(choices) > 1 else [0.5]
        places = dict(zip(choices, map(float, heights), strict=True))
        return Axis(
            name, places.__getitem__, [(height, str(choice)) for choice, height in places.items()], frozenset(choices)
        )
    low, high, spread = entry.get("low"), entry.get("high"), frozenset()
    if low is None or name == fields.CFG:  # selected values are close together
        spread = frozenset(value for value in used if used.count(value) > 1)
        if low is None or len(set(used)) > 1:
            low, high = min(used, default=0.0), max(used, default=1.0)
    if entry.get("log"):
        return Axis(
            name,
            lambda value: math.log(value / low) / math.log(high / low) if value > 0 else OFF,
            _log_ticks(low, high),
        )
    span = (high - low) or 1.0
    ticks = [(share, f"{low + share * span:.3g}") for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    if entry.get("type") == "int":  # whole values only
        ticks = sorted(
            {((value - low) / span, f"{value:g}") for value in (round(low + share * span) for share, _ in ticks)}
        )
    return Axis(name, lambda value: (value - low) / span, ticks, spread)


def _log_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """The ends, and the powers of ten not too close to them."""
    inner = [10.0**e for e in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]
    ticks = [(math.log(value / low) / math.log(high / low), f"{value:g}") for value in inner]
    return [(0.0, f"{low:g}"), *(tick for tick in ticks if 0.07 < tick[0] < 0.93), (1.0, f"{high:g}")]


def _draw_axis(axes, x: float, axis: Axis, name: str, conditional: bool) -> None:
    axes.plot([x, x], [0, 1], color=INK, lw=1.1, zorder=4)
    axes.text(x, 1.07, name, ha="center", va="bottom", fontsize=12, fontweight="bold")
    halo = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8}
    for height, label in axis.ticks:
        axes.plot([x - 0.025, x], [height, height], color=INK, lw=1.1, zorder=4)
        axes.text(x - 0.045, height, label, ha="right", va="center", fontsize=9, bbox=halo, zorder=7)
    if conditional or axis.name in (fields.LAMBDA_1, fields.LAMBDA_2, *OF_LAMBDA_1):
        axes.plot([x], [OFF], marker="_", ms=10, color=INK, zorder=4)
        absent = "0" if axis.name in (fields.LAMBDA_1, fields.LAMBDA_2) else "none"
        axes.text(x, OFF - 0.03, absent, ha="center", va="top", fontsize=9)


def _draw_objective(axes, x: float, results: StudyResults, values: Values) -> None:
    ends = np.linspace(values.high, values.low, 128) if values.minimize else np.linspace(values.low, values.high, 128)
    strip = np.array([[values.colour(value)] for value in ends])
    axes.imshow(strip, extent=(x, x + 0.09, 0, 1), origin="lower", aspect="auto", zorder=4)
    axes.text(x + 0.045, 1.07, fields.short(results.metric), ha="center", va="bottom", fontsize=12, fontweight="bold")
    axes.text(x + 0.045, 1.02, fields.direction_text(results.metric), ha="center", va="bottom", fontsize=8, color=FAINT)
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        worst, best = (values.high, values.low) if values.minimize else (values.low, values.high)
        value = worst + share * (best - worst)
        beyond = ("≥ " if values.minimize else "≤ ") if share == 0 and values.clipped else ""
        axes.text(x + 0.12, share, f"{beyond}{value:.4g}", ha="left", va="center", fontsize=9)


def _legend(results: StudyResults, ranked: list[TrialResult]) -> list[Line2D]:
    best, baseline, name = results.best, results.baseline, fields.short(results.metric)
    lines = [Line2D([], [], color=BEST, lw=3, label=f"best: trial {best.number}, {name} {best.value:.4g}")]
    if baseline is not None and baseline.value is not None:
        lines.append(
            Line2D([], [], color=BASELINE, lw=2.2, ls=(0, (4, 2)), label=f"baseline: {name} {baseline.value:.4g}")
        )
    return [*lines, Line2D([], [], color="#7fa3d1", lw=1.3, label=f"all {len(ranked):,} trials with a score")]
