"""The report's charts as Plotly figures, and what the page needs to draw them without a network.

Each function returns a `plotly.graph_objects.Figure`, or None if there is nothing to draw; all work in a notebook too.
A point of a trial carries the trial's number as customdata.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from uvar_tune.analysis.results import StudyResults, TrialResult
from uvar_tune.reporting import fields
from uvar_tune.reporting.charts import VERDICT_COLOURS
from uvar_tune.reporting.figures import (
    BASELINE,
    BEST,
    CURVES,
    FAINT,
    Values,
    highlighted,
    logged_curves,
    selection_curve,
    several_axes,
)
from uvar_tune.reporting.study_figure import OFF, axis_of, height_of

LIMIT = 1000  # trials on the page
_CURVES_OF, _POINTS = 20, 120  # trials with a curve in a chart; points of a training curve
_DETAILED = 100  # trials with samples and curves behind their number
_THUMBNAIL = 220  # pixels, width
_ABOVE = {"orientation": "h", "yanchor": "bottom"}  # place of a legend
_SCALE = [[0, "#fde725"], [0.35, "#35b779"], [0.7, "#31688e"], [1, "#440154"]]  # viridis, the best darkest


def figures(results: StudyResults) -> dict[str, Any]:
    """Name of the static figure → the Plotly figures that stand for it, top to bottom."""
    drawn = {
        "verdicts": [verdict_figure(results)],
        "png": [parallel_figure(results), slice_figure(results)],
        "pareto": [pareto_figure(results)],
        "cfg": [cfg_figure(results)],
        "training": [training_figure(results)],
    }
    return {name: kept for name, found in drawn.items() if (kept := [one for one in found if one is not None])}


def shown_trials(results: StudyResults) -> list[TrialResult]:
    """The ranked trials on the page, the best `LIMIT`; the baseline among them."""
    ranked = results.ranked()[:LIMIT]
    baseline = results.baseline
    add = baseline is not None and baseline.value is not None and baseline not in ranked
    return [*ranked, baseline] if add else ranked


def parallel_figure(results: StudyResults):
    """Parallel coordinates of the parameters and the study metric, which is best at the top. None without a score."""
    graph, shown = _graph(), shown_trials(results)
    if not shown:
        return None
    values = Values([trial.value for trial in shown], results.direction)
    names = [*fields.parameters(results), *([fields.CFG] if any(fields.CFG in one.params for one in shown) else [])]
    dimensions = []
    for name in names:
        axis = axis_of(results, name, shown)
        heights = [round(height_of(results, axis, trial), 4) for trial in shown]
        ticks = [*axis.ticks, *([(OFF, "0 or off")] if OFF in heights else [])]
        dimensions.append(_dimension(fields.label(results, name), heights, ticks))
    worst, best = (values.high, values.low) if values.minimize else (values.low, values.high)
    ticks = [(share, f"{worst + share * (best - worst):.4g}") for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    places = [round(values.position(trial.value), 4) for trial in shown]
    dimensions.append(_dimension(fields.short(results.metric), places, ticks))
    line = {"color": places, "colorscale": _SCALE, "cmin": 0, "cmax": 1}
    chart = graph.Parcoords(dimensions=dimensions, line=line, customdata=[trial.number for trial in shown])
    return _styled(graph.Figure(chart), height=430, margin={"l": 70, "r": 60, "t": 60, "b": 30})


def _dimension(label: str, values: list[float], ticks: list[tuple[float, str]]) -> dict[str, Any]:
    low = OFF - 0.03 if OFF in values else -0.02
    return {
        "label": _text(label),
        "values": values,
        "range": [low, 1.02],
        "tickvals": [place for place, _ in ticks],
        "ticktext": [_text(text) for _, text in ticks],
    }


def slice_figure(results: StudyResults):
    """The study metric over each parameter; a band shows by how much the baseline differs from itself (95 %)."""
    from plotly.subplots import make_subplots

    graph, names = _graph(), fields.parameters(results)
    shown = [trial for trial in shown_trials(results) if trial is not results.baseline]
    if not names or not shown:
        return None
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = make_subplots(rows, columns, shared_yaxes=True, horizontal_spacing=0.04, vertical_spacing=0.28 / rows)
    scale = Values([trial.value for trial in shown_trials(results)], results.direction)
    band = _noise_band(results)
    low, high = min([scale.low, *band]), max([scale.high, *band])
    for at, name in enumerate(names):
        place = {"row": at // columns + 1, "col": at % columns + 1}
        used = [trial for trial in shown if fields.applies(results, trial, name)]
        figure.add_trace(_dots(graph, results, used, [_plain(trial.params[name]) for trial in used]), **place)
        kind = "log" if results.space.get(name, {}).get("log") else "-"
        figure.update_xaxes(
            title_text=_text(fields.label(results, name)), type=kind, dtick=1 if kind == "log" else None, **place
        )
        if len(band) == 2 and band[0] < band[1]:
            figure.add_hrect(*band, fillcolor=BASELINE, opacity=0.16, line_width=0, layer="below", **place)
        if band:
            middle = sum(band) / len(band)
            figure.add_hline(middle, line={"color": BASELINE, "width": 1.5, "dash": "dash"}, **place)
    figure.update_yaxes(range=[low - 0.05 * (high - low), high + 0.05 * (high - low)])
    for row in range(1, rows + 1):
        figure.update_yaxes(title_text=_text(fields.short(results.metric)), row=row, col=1)
    return _styled(figure, height=270 * rows + 30, showlegend=False)


def _noise_band(results: StudyResults) -> list[float]:
    """The baseline's score less and plus the 95 % reach of a difference of two seeds; only the score if unknown."""
    baseline = results.baseline
    if baseline is None or baseline.value is None:
        return []
    if results.noise is None:
        return [baseline.value]
    reach = 1.96 * math.sqrt(2 * results.noise["replicate"]["value"])
    return [baseline.value - reach, baseline.value + reach]


def _dots(graph, results: StudyResults, trials: list[TrialResult], across: list[Any]):
    best = results.best
    marker = {
        "color": [BEST if trial is best else "#5b8fc7" for trial in trials],
        "size": [11 if trial is best else 6 for trial in trials],
        "symbol": ["star" if trial is best else "circle" if trial.feasible else "x" for trial in trials],
        "opacity": 0.8 if len(trials) < 200 else 0.5,
    }
    numbers = [trial.number for trial in trials]
    return graph.Scatter(
        x=across,
        y=[trial.value for trial in trials],
        mode="markers",
        marker=marker,
        customdata=numbers,
        hoverinfo="none",
    )


def verdict_figure(results: StudyResults):
    """Difference of each arm from the baseline with its 90 % interval; None before the phase `confirm`."""
    graph, verdicts = _graph(), fields.sorted_verdicts(results)[::-1]
    if not verdicts:
        return None
    figure = graph.Figure()
    for word, colour in VERDICT_COLOURS.items():
        arms = [one for one in verdicts if one["verdict"] == word]
        if not arms:
            continue
        reach = [(one["difference"] if one["low"] is None else one["low"], one["high"]) for one in arms]
        error = {
            "array": [
                0 if high is None else high - one["difference"] for one, (_, high) in zip(arms, reach, strict=True)
            ],
            "arrayminus": [one["difference"] - low for one, (low, _) in zip(arms, reach, strict=True)],
            "thickness": 3,
            "width": 0,
        }
        symbol = {"better": "star", "worse": "x"}.get(word, "circle")
        marker = {"color": colour, "size": 12, "symbol": symbol}
        names = [_text(one["arm"]) for one in arms]
        text = [_text(_difference(one)) for one in arms]
        figure.add_scatter(
            x=[one["difference"] for one in arms], y=names, error_x=error, mode="markers", marker=marker, name=word,
            text=text, hovertemplate="%{y}: %{text}<extra></extra>",
        )  # fmt: skip
    figure.add_vline(0, line={"color": BASELINE, "width": 2, "dash": "dash"})
    side = "left" if results.direction == "minimize" else "right"
    figure.update_xaxes(title_text=f"{fields.short(results.metric)}, difference from the baseline; {side} is better")
    figure.update_yaxes(categoryorder="array", categoryarray=[_text(one["arm"]) for one in verdicts], type="category")
    return _styled(figure, height=130 + 38 * len(verdicts))


def _difference(one: dict[str, Any]) -> str:
    interval = "" if one["low"] is None else f" [{one['low']:+.3g}, {one['high']:+.3g}]"
    return f"{one['difference']:+.3g}{interval}, {one['pairs']} pairs of seeds, {one['verdict']}"


def pareto_figure(results: StudyResults):
    """The study metric against the first further metric, with the Pareto front; None with one metric."""
    graph, other = _graph(), next(iter(results.further_metrics), None)
    shown = [trial for trial in shown_trials(results) if other in trial.metric_values]
    if other is None or not shown:
        return None
    figure = graph.Figure()
    groups = {
        "dominated": (
            [one for one in shown if one.feasible and one.number not in results.pareto],
            "#8fb3dc",
            "circle",
            7,
        ),
        "violates a constraint": ([one for one in shown if not one.feasible], FAINT, "x", 7),
        "Pareto front": ([one for one in shown if one.number in results.pareto], BEST, "diamond", 10),
        "baseline": ([one for one in shown if one is results.baseline], BASELINE, "square", 12),
    }
    for name, (trials, colour, symbol, size) in groups.items():
        if trials:
            figure.add_scatter(
                x=[trial.value for trial in trials], y=[trial.metric_values[other] for trial in trials], name=name,
                mode="markers", marker={"color": colour, "symbol": symbol, "size": size},
                customdata=[trial.number for trial in trials], hoverinfo="none",
            )  # fmt: skip
    scale = Values([trial.value for trial in shown], results.direction)
    margin = 0.06 * (scale.high - scale.low)
    figure.update_xaxes(title_text=_axis_name(results.metric), range=[scale.low - margin, scale.high + margin])
    figure.update_yaxes(title_text=_axis_name(other))
    return _styled(figure, height=420)


def cfg_figure(results: StudyResults):
    """The study metric over the CFG scale, a line a trial: the best 20 and the baseline."""
    graph, figure = _graph(), _graph().Figure()
    special = {trial.number: (colour, name) for trial, colour, name in highlighted(results)}
    shown = [one for one in shown_trials(results)[:_CURVES_OF] if one.number not in special]
    named: set[str] = set()
    for trial in [*shown, *(trial for trial, _, _ in highlighted(results))]:
        points = selection_curve(results, trial)
        if len(points) < 2:
            continue
        colour, name = special.get(trial.number, (FAINT, f"the next {len(shown)} in rank"))
        figure.add_trace(
            graph.Scatter(
                x=[x for x, _ in points],
                y=[y for _, y in points],
                name=name,
                customdata=[trial.number] * len(points),
                mode="markers" if several_axes(results) else "lines+markers",
                hoverinfo="none",
                line={"color": colour, "width": 3 if trial.number in special else 1},
                legendgroup=name,
                showlegend=name not in named,
            )  # fmt: skip
        )
        named.add(name)
    if not figure.data:
        return None
    figure.update_xaxes(title_text="CFG scale (0 = off)")
    figure.update_yaxes(title_text=_axis_name(results.metric))
    return _styled(figure, height=420)


def training_figure(results: StudyResults):
    """Loss terms and gradient norm of the best trial and the baseline over images seen; None if none is logged."""
    from plotly.subplots import make_subplots

    graph = _graph()
    logged = [(colour, name, logged_curves(trial)) for trial, colour, name in highlighted(results)]
    keys = [key for key in CURVES if any(key in curves for _, _, curves in logged)]
    if not keys:
        return None
    columns = min(3, len(keys))
    rows = -(-len(keys) // columns)
    figure = make_subplots(rows, columns, subplot_titles=[CURVES[key] for key in keys], vertical_spacing=0.3 / rows)
    named = set()
    for at, key in enumerate(keys):
        for colour, name, curves in logged:
            if key in curves:
                images, values = _thinned(*curves[key])
                line = graph.Scatter(
                    x=images, y=values, name=name, legendgroup=name, showlegend=name not in named,
                    line={"color": colour},
                )  # fmt: skip
                figure.add_trace(line, row=at // columns + 1, col=at % columns + 1)
                named.add(name)
    for column in range(1, columns + 1):
        figure.update_xaxes(title_text="images seen", row=rows, col=column)
    return _styled(
        figure, height=250 * rows + 90, margin={"l": 50, "r": 20, "t": 80, "b": 50}, legend={"y": 1.12, **_ABOVE}
    )


def _thinned(images: list[int], values: list[float]) -> tuple[list[int], list[float]]:
    step = -(-len(images) // _POINTS)
    return [*images[:-1:step], images[-1]], [*values[:-1:step], values[-1]]


def page_data(results: StudyResults, drawn: dict[str, Any]) -> str:
    """Figures and details of trials as JSON that may stand inside a script element."""
    trials = {trial.number: _details(results, trial, rank) for rank, trial in enumerate(shown_trials(results))}
    charts = {f"{key}-{at}": json.loads(one.to_json()) for key, found in drawn.items() for at, one in enumerate(found)}
    text = json.dumps({"study": results.name, "charts": charts, "trials": trials}, ensure_ascii=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _details(results: StudyResults, trial: TrialResult, rank: int) -> dict[str, Any]:
    names = [*fields.parameters(results), *fields.selected(results)]
    settings = {
        fields.label(results, name): fields.format_value(trial.params[name])
        for name in names
        if fields.applies(results, trial, name)
    }
    found = {"settings": settings, "value": f"{fields.short(results.metric)} {fields.format_value(trial.value)}"}
    if rank >= _DETAILED and trial is not results.baseline:
        return found
    curve = logged_curves(trial).get("loss/total")
    if curve:
        found["curve"] = _thinned(*curve)
    profile = selection_curve(results, trial)
    if len(profile) > 1:
        found["cfg"] = list(zip(*profile, strict=True))
    grid = max((trial.directory / "samples").glob("*.png"), default=None)
    if grid:
        found["samples"] = _thumbnail(grid)
    return found


def _thumbnail(path: Path) -> str:
    import io

    from PIL import Image

    with Image.open(path) as picture:
        picture = picture.convert("RGB")
        picture.thumbnail((_THUMBNAIL, 2 * _THUMBNAIL))
        written = io.BytesIO()
        picture.save(written, format="WEBP", quality=75)
    return "data:image/webp;base64," + base64.b64encode(written.getvalue()).decode()


@lru_cache(maxsize=1)
def library() -> str:
    """Plotly's JavaScript from the installed package, gzip and base64: a third of its size."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()


def script() -> str:
    """The JavaScript of the page."""
    return resources.files("uvar_tune.reporting").joinpath("report.js").read_text(encoding="utf-8")


def _graph():
    import plotly.graph_objects

    return plotly.graph_objects


def _styled(figure, **layout: Any):
    font = {"family": "system-ui, DejaVu Sans, sans-serif", "size": 13}
    look = {
        "margin": {"l": 60, "r": 20, "t": 40, "b": 50},
        "legend": {"y": 1.02, **_ABOVE},
    }
    return figure.update_layout(template="none", font=font, **{**look, **layout})


def _axis_name(name: str) -> str:
    return f"{fields.short(name)} ({fields.direction_text(name)})"


def _plain(value: Any) -> Any:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else _text(str(value))


def _text(text: str) -> str:
    """Text that Plotly displays letter by letter: it knows some HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
