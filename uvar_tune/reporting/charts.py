"""Charts of the report: differences on fresh seeds, parameter importance, Pareto fronts."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from uvar_tune.analysis.results import StudyResults, TrialResult
from uvar_tune.reporting import fields
from uvar_tune.reporting.figures import BASELINE, BEST, FAINT, INK, Values, canvas, save, styled

VERDICT_COLOURS = {"better": BEST, "worse": "#a40e26", "not distinguishable": FAINT}
_LIGHT = "#9db8da"
_BARS = 12  # parameters at most


def verdict_chart(results: StudyResults, path: Path) -> Path | None:
    """Difference of each arm from the baseline with its interval and single pairs; None before the phase `confirm`."""
    verdicts = fields.sorted_verdicts(results)
    if not verdicts:
        return None
    baseline = results.confirmed.get("baseline", {}).get("values", {})
    with styled():
        figure = canvas(8.4, 1.1 + 0.44 * len(verdicts))
        axes = figure.add_subplot()
        axes.axvline(0, color=BASELINE, lw=1.4, ls=(0, (4, 2)))
        for height, one in enumerate(reversed(verdicts)):
            colour = VERDICT_COLOURS[one["verdict"]]
            values = results.confirmed.get(one["arm"], {}).get("values", {})
            pairs = [values[replicate] - baseline[replicate] for replicate in values if replicate in baseline]
            axes.plot(pairs, [height - 0.17] * len(pairs), ls="", marker="|", ms=7, color=FAINT, alpha=0.8)
            if one["low"] is not None:
                axes.plot([one["low"], one["high"]], [height, height], color=colour, lw=2.6, solid_capstyle="butt")
            axes.plot(one["difference"], height, marker="o", ms=6.5, color=colour)
        axes.set_yticks(range(len(verdicts)), [one["arm"] for one in reversed(verdicts)])
        axes.set_ylim(-0.6, len(verdicts) - 0.4)
        axes.grid(visible=False, axis="y")
        name, side = fields.short(results.metric), "left" if results.direction == "minimize" else "right"
        axes.set_xlabel(f"{name}, difference from the baseline (dashed); {side} of it is better")
        return save(figure, path)


def importance_chart(results: StudyResults, path: Path) -> Path | None:
    """Bars of all evaluators for each parameter; None if none has an answer."""
    found = {name: shares for name, shares in results.importances.items() if shares}
    if not found:
        return None
    names = sorted(
        {name for shares in found.values() for name in shares},
        key=lambda name: (-max(shares.get(name) or 0.0 for shares in found.values()), name),
    )[:_BARS]
    with styled():
        figure = canvas(8.4, 1.0 + (0.2 + 0.22 * len(found)) * len(names))
        axes = figure.add_subplot()
        thick = 0.8 / len(found)
        for row, (evaluator, shares) in enumerate(found.items()):
            places = np.arange(len(names)) + (row - (len(found) - 1) / 2) * thick
            axes.barh(
                places,
                [shares.get(name) or 0.0 for name in names],
                height=0.9 * thick,
                label=evaluator,
                color=BEST if row == 0 else _LIGHT,
            )
            for place, name in zip(places, names, strict=True):
                share = shares.get(name)
                words = "searched in some trials only" if share is None else f"{share:.0%}"
                colour = FAINT if share is None else INK
                axes.text((share or 0.0) + 0.008, place, words, va="center", fontsize=8.5, color=colour)
        axes.set_yticks(range(len(names)), [fields.label(results, name) for name in names])
        axes.invert_yaxis()
        axes.set_xlim(
            0,
            min(1.08, 1.15 * max(max(filter(None, shares.values()), default=0.0) for shares in found.values()) + 0.02),
        )
        axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("share of the importance")
        axes.legend(loc="lower right", fontsize=9)
        return save(figure, path)


def pareto_chart(results: StudyResults, path: Path) -> Path | None:
    """The study metric against each further metric, with the Pareto front; None if there is one metric."""
    ranked = [trial for trial in results.ranked() if trial.metric_values]
    if not results.further_metrics or not ranked:
        return None
    with styled():
        figure = canvas(min(12.0, 6.2 * len(results.further_metrics) + 1.2), 4.6)
        panels = figure.subplots(1, len(results.further_metrics), squeeze=False)[0]
        for axes, other in zip(panels, results.further_metrics, strict=True):
            _panel(axes, results, ranked, other)
        handles, names = panels[0].get_legend_handles_labels()
        legend = figure.legend(handles, names, loc="outside upper right", ncols=4, fontsize=9)
        for handle in legend.legend_handles:
            handle.set_alpha(1)
        return save(figure, path)


def _panel(axes, results: StudyResults, ranked: list[TrialResult], other: str) -> None:
    front = [trial for trial in ranked if trial.number in results.pareto]
    feasible = [trial for trial in ranked if trial.feasible and trial.number not in results.pareto]
    alpha = min(0.8, max(0.25, 60 / len(ranked)))

    def draw(trials, **style) -> None:
        if trials:
            axes.plot(*zip(*((trial.value, trial.metric_values[other]) for trial in trials), strict=True), **style)

    broken = [trial for trial in ranked if not trial.feasible]
    draw(broken, ls="", marker="x", ms=5, color=FAINT, alpha=alpha, label="violates a constraint")
    draw(feasible, ls="", marker="o", ms=5, mec="none", color="#7fa3d1", alpha=alpha, label="dominated")
    steps = {"ls": "-", "lw": 1.2, "drawstyle": f"steps-{'post' if results.direction == 'minimize' else 'pre'}"}
    draw(
        sorted(front, key=lambda trial: trial.value),
        marker="o",
        ms=7,
        color=BEST,
        label="Pareto front",
        **(steps if len(results.further_metrics) == 1 else {"ls": ""}),
    )
    baseline = results.baseline
    if baseline is not None and baseline.metric_values:
        draw([baseline], ls="", marker="D", ms=8, mfc="white", mec=BASELINE, mew=1.8, label="baseline", zorder=5)
    for name, values, limit in (
        (results.metric, [trial.value for trial in ranked], axes.set_xlim),
        (other, [trial.metric_values[other] for trial in ranked], axes.set_ylim),
    ):
        scale = Values(values, fields.metric_directions(results)[name])
        own = [baseline.metric_values[name]] if baseline is not None and baseline.metric_values else []
        low, high = min([scale.low, *own]), max([scale.high, *own])
        limit(low - 0.06 * (high - low), high + 0.06 * (high - low))
    axes.set(xlabel=_axis_name(results.metric), ylabel=_axis_name(other))


def _axis_name(name: str) -> str:
    return f"{fields.short(name)} ({fields.direction_text(name)})"
