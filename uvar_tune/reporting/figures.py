"""Style and scales of all figures, the curves FID(CFG), and the training curves."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure

from uvar_tune.analysis.results import StudyResults, TrialResult
from uvar_tune.reporting import fields
from uvar_tune.tracking.metrics_log import AXES, read_records

INK, FAINT, BEST, BASELINE = "#24292f", "#8c959f", "#0b3d91", "#c2410c"
_SCALE = LinearSegmentedColormap.from_list("value", ["#d3dbe6", "#7fa3d1", BEST])  # worst … best
_DPI = 150
CURVES = {
    "loss/total": "L, the total",
    "loss/ce": "L_CE, cross-entropy",
    "loss/second_order": "L_2nd, dispersion",
    "loss/semantic_entropy": "L_SE, semantic entropy",
    "grad_norm": "norm of the gradient",
    "learning_rate": "learning rate",
}
_STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.color": "#eaeef2",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "text.parse_math": False,
}


def canvas(width: float, height: float) -> Figure:
    """An empty figure (inches) outside pyplot's global state."""
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Write a figure; its path."""
    figure.savefig(path, facecolor="white")
    return path


def styled():
    """A context manager that applies the style of the report."""
    return matplotlib.rc_context(_STYLE)


class Values:
    """Maps the study metric to position and colour: 1 is the best, 0 the worst; outliers are clipped to 0.

    Args:
        values: finite values.
        direction: minimize or maximize.
    """

    def __init__(self, values: list[float], direction: str):
        low, q25, q75, high = (float(value) for value in np.quantile(values, [0, 0.25, 0.75, 1]))
        self.minimize, reach, worst = (
            direction == "minimize",
            3 * (q75 - q25),
            (high if direction == "minimize" else low),
        )
        if len(values) >= 8 and reach > 0:
            low, high = (low, min(high, q75 + reach)) if self.minimize else (max(low, q25 - reach), high)
        self.clipped = worst not in (low, high)
        self.low, self.high = (low, high) if high > low else (low - abs(low) / 10 - 1e-9, high + abs(high) / 10 + 1e-9)
        self._norm = Normalize(self.low, self.high, clip=True)

    def position(self, value: float) -> float:
        """Position in [0, 1]."""
        share = float(self._norm(value))
        return 1 - share if self.minimize else share

    def colour(self, value: float):
        """RGBA colour."""
        return _SCALE(self.position(value))


def cfg_curves(results: StudyResults, path: Path) -> Path | None:
    """The study metric over the CFG scale, a line a trial; None if no checkpoint was scored at several scales."""
    curves = {trial.number: points for trial in results.ranked() if len(points := selection_curve(results, trial)) > 1}
    if not curves:
        return None
    with styled():
        figure = canvas(8, 4.2)
        axes = figure.add_subplot()
        alpha = min(0.6, max(0.06, 15 / len(curves)))
        line = "" if several_axes(results) else "-"
        for points in curves.values():
            axes.plot(
                *zip(*points, strict=True),
                color=FAINT,
                lw=0.8,
                ls=line,
                marker="" if line else ".",
                mec="none",
                alpha=alpha,
            )
        for trial, colour, name in highlighted(results):
            if trial.number in curves:
                axes.plot(
                    *zip(*curves[trial.number], strict=True),
                    color=colour,
                    lw=2,
                    ls=line,
                    marker="o",
                    ms=4.5,
                    label=name,
                )
            evaluated = [
                point
                for point in trial.inference_points
                if point.get("seeds") == "evaluation" and results.metric in point
            ]
            if evaluated:
                axes.plot(
                    evaluated[-1]["cfg_scale"],
                    evaluated[-1][results.metric],
                    marker="D",
                    ms=8,
                    mfc="white",
                    mec=colour,
                    mew=1.6,
                    ls="",
                    label=f"{name.partition(' (')[0]}, on evaluation seeds",
                )
        scale = Values([value for points in curves.values() for _, value in points], results.direction)
        margin = 0.06 * (scale.high - scale.low)
        axes.set_ylim(scale.low - margin, scale.high + margin)
        name = f"{fields.short(results.metric)} ({fields.direction_text(results.metric)})"
        axes.set(xlabel="CFG scale (0 = off)", ylabel=name)
        axes.legend(loc="best", fontsize=9)
        return save(figure, path)


def several_axes(results: StudyResults) -> bool:
    """Whether points differ in more than the CFG scale: then dots are drawn instead of lines."""
    return any(point.keys() & AXES for trial in results.trials for point in trial.inference_points)


def selection_curve(results: StudyResults, trial: TrialResult) -> list[tuple[float, float]]:
    """(CFG scale, its best score on selection seeds)."""
    better = min if results.direction == "minimize" else max
    points: dict[float, float] = {}
    for point in trial.inference_points:
        value = float(point.get(results.metric, math.nan))
        if point.get("seeds") == "selection" and math.isfinite(value):
            points[point["cfg_scale"]] = better(value, points.get(point["cfg_scale"], value))
    return sorted(points.items())


def highlighted(results: StudyResults) -> list[tuple[TrialResult, str, str]]:
    """(trial, colour, name) of the baseline and the best trial, in drawing order."""
    best, baseline = results.best, results.baseline
    found = [(baseline, BASELINE, f"baseline (trial {baseline.number})")] if baseline and baseline is not best else []
    name = "best" if best.kind != "baseline" else "best, the baseline"
    return [*found, (best, BEST, f"{name} (trial {best.number})")]


def training_curves(results: StudyResults, path: Path) -> Path | None:
    """Loss terms and gradient norm of the best trial and the baseline over images seen; None if none is logged."""
    curves = [(colour, name, logged_curves(trial)) for trial, colour, name in highlighted(results)]
    keys = [key for key in CURVES if any(key in recorded for _, _, recorded in curves)]
    if not keys:
        return None
    rows = -(-len(keys) // 3)
    with styled():
        figure = canvas(11, 2.7 * rows + 0.3)
        grid = figure.subplots(rows, min(3, len(keys)), squeeze=False).flat
        for axes, key in zip(grid, keys, strict=False):
            for colour, name, recorded in curves:
                if key in recorded:
                    axes.plot(*recorded[key], color=colour, lw=1.3, alpha=0.9, label=name)
            axes.set_title(CURVES[key], fontsize=10, loc="left")
            axes.xaxis.set_major_formatter(lambda images, _: f"{images / 1000:g}k" if images >= 1000 else f"{images:g}")
            axes.margins(x=0.02)
        for axes in list(grid)[len(keys) :]:
            axes.set_axis_off()
        figure.supxlabel("images seen", fontsize=10)
        handles = [matplotlib.lines.Line2D([], [], color=colour, lw=2, label=name) for colour, name, _ in curves]
        figure.legend(handles=handles, loc="outside upper right", ncols=2, fontsize=9)
        return save(figure, path)


def logged_curves(trial: TrialResult) -> dict[str, tuple[list[int], list[float]]]:
    """Key of the metrics log → (images seen, values)."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    for record in read_records(trial.directory / "metrics.jsonl")[0]:
        for key, value in record.get("values", {}).items():
            images, values = found.setdefault(key, ([], []))
            images.append(record["images"])
            values.append(value)
    return found
