"""The report of a study: one self-contained HTML page with figures and samples."""

from __future__ import annotations

from html import escape
from pathlib import Path

from uvar_tune.analysis.results import StudyResults
from uvar_tune.errors import ConfigError
from uvar_tune.io.atomic import write_text_atomic
from uvar_tune.reporting import confirmation_sections, fields, interactive, search_sections, sections
from uvar_tune.reporting.charts import importance_chart, pareto_chart, verdict_chart
from uvar_tune.reporting.figures import cfg_curves, several_axes, training_curves
from uvar_tune.reporting.page_assets import CSS
from uvar_tune.reporting.study_figure import study_figure
from uvar_tune.reporting.warnings import study_warnings

_STUDY = (
    "Each line is a trial, coloured by its {metric}; the baseline (λ₁ = λ₂ = 0) is dashed. Lines through the same "
    "category or CFG scale are spread a little."
)
_CFG = (
    "Each checkpoint is scored at several scales without retraining. The scale is selected on one set of sampling "
    "seeds ({drawn}) and its score is reported on another (diamonds)."
)
_LINES, _DOTS = "lines", "dots; the best score of each scale"
_VERDICTS = (
    "Dots: mean difference of an arm from the baseline; bars: its 90 % interval, unadjusted for the number of arms; "
    "ticks: single pairs of seeds."
)
_FRONT = (
    "Every trial with a score, outliers excepted. No other trial is at least as good in all metrics as a trial on the "
    "Pareto front."
)
_OF_CHARTS = {
    "png": "Above: each line is a trial, the darker the better (on a dark page, the brighter). Drag along an axis "
    "to select trials, and the table follows; drag a name to move its axis. Below: each parameter alone. The star is "
    "the best trial, a cross violates a constraint, and the dashed line is the baseline; inside the band "
    "a difference is no larger than that of two seeds of the baseline (95 %).",
    "verdicts": "Mean difference of an arm from the baseline (dashed); bars: its 90 % interval, unadjusted for the "
    "number of arms.",
    "cfg": "Each checkpoint is scored at several scales without retraining; these scores are on the sampling seeds "
    "that select the scale. A click on a name of the legend hides its lines.",
    "training": "A click on a name of the legend hides its lines.",
}  # captions while the charts are displayed
_NAMED = 8  # parameters of the best trial in the head
# No request to anywhere. Plotly compiles its shaders' drawing commands (unsafe-eval).
_POLICY = "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline' 'unsafe-eval'"


def write_report(results: StudyResults, directory: Path) -> dict[str, Path]:
    """Write page and figures.

    Args:
        results: of a study with at least one score.
        directory: created if missing.

    Returns:
        Paths by name: html, png (the study figure) and, if there is something to draw, cfg, training, verdicts,
        importance, pareto.

    Raises:
        ConfigError: the directory cannot be written.
    """
    try:
        return _write(results, directory)
    except OSError as error:
        raise ConfigError(
            f"{error.filename or directory} cannot be written: {error.strerror}", where=str(directory)
        ) from None


def _write(results: StudyResults, directory: Path) -> dict[str, Path]:
    directory.mkdir(parents=True, exist_ok=True)
    drawn = {
        "png": study_figure(results, directory / "study.png"),
        "cfg": cfg_curves(results, directory / "cfg.png"),
        "training": training_curves(results, directory / "training.png"),
        "verdicts": verdict_chart(results, directory / "verdicts.png"),
        "importance": importance_chart(results, directory / "importance.png"),
        "pareto": pareto_chart(results, directory / "pareto.png"),
    }
    figures = {name: path for name, path in drawn.items() if path is not None}
    page = directory / "report.html"
    write_text_atomic(page, _page(results, figures))
    return {"html": page, **figures}


def _page(results: StudyResults, figures: dict[str, Path]) -> str:
    name, metric = escape(results.name), fields.short(results.metric)
    cfg = _CFG.format(drawn=_DOTS if several_axes(results) else _LINES)
    captions = {
        "png": _STUDY.format(metric=metric),
        "cfg": cfg,
        "training": "",
        "verdicts": _VERDICTS,
        "importance": search_sections.importance_caption(results),
        "pareto": _FRONT,
    }
    charts = interactive.figures(results)
    drawn = {
        key: sections.figure(
            figures.get(key),
            caption,
            narrow=key not in ("png", "training"),
            of_charts=_OF_CHARTS.get(key, ""),
            charts=[f"{key}-{at}" for at in range(len(charts.get(key, ())))],
        )
        for key, caption in captions.items()
    }
    parts = [
        _head(results),
        _section("Verdicts on fresh seeds", drawn["verdicts"] + confirmation_sections.verdicts(results)),
        _section("The 2×2 design: each term alone, and both", confirmation_sections.factorial(results)),
        _section("The study", drawn["png"]),
        _section("Trials", sections.table(results)),
        _section("Several metrics", drawn["pareto"] + search_sections.pareto_front(results)),
        _section(f"{metric} over the CFG scale", drawn["cfg"]),
        _section("Samples", sections.samples(results)),
        _section("Which parameters matter", drawn["importance"]),
        _section("Noise of the baseline", confirmation_sections.baseline_noise(results)),
        _section("Is the short run a valid proxy?", search_sections.rung_correlations(results)),
        _section("Training of the best and of the baseline", drawn["training"]),
        _section("Protocol of the scores", sections.protocol(results)),
        _section("Cost", sections.costs(results)),
        _section("Provenance", sections.provenance(results)),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}: {metric}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{CSS}</style></head>\n<body>'
        f"<main>{''.join(parts)}</main>"
        f'<script type="application/json" id="data">{interactive.page_data(results, charts)}</script>'
        f'<script type="text/plain" id="library">{interactive.library()}</script>'
        f"<script>{interactive.script()}</script></body></html>\n"
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>\n" if body else ""


def _head(results: StudyResults) -> str:
    best, baseline, metric = results.best, results.baseline, fields.short(results.metric)
    names = [
        name for name in (*fields.parameters(results), *fields.selected(results)) if fields.applies(results, best, name)
    ]
    where = ", ".join(
        f"{fields.label(results, name)} {fields.format_value(best.params[name], 3)}" for name in names[:_NAMED]
    )
    where += ", …" if len(names) > _NAMED else ""
    cards = [_card("best", fields.format_value(best.value), f"best {metric}: trial {best.number}<br>{escape(where)}")]
    if baseline is not None and baseline is not best:
        cfg = f", CFG {fields.format_value(baseline.params[fields.CFG])}" if fields.CFG in baseline.params else ""
        cards.append(
            _card("base", fields.format_value(baseline.value), f"baseline: trial {baseline.number}<br>λ₁ = λ₂ = 0{cfg}")
        )
    cards.append(_card("", f"{len(results.trials):,}", f"trials<br>{escape(fields.outcomes(results))}"))
    samples = results.protocol.get("samples")
    if samples:
        cards.append(_card("", f"{samples:,}", "samples per score"))
    notes = [
        confirmation_sections.headline(results),
        *(f'<p class="note warn">{_sentence(line)}</p>' for line in study_warnings(results)),
    ]
    question = results.config.get("study", {}).get("question") or "No question is given."
    return (
        f'<header><h1>{escape(results.name)}</h1><p class="question">{escape(question)}</p>'
        f'<p class="soft">{escape(_objectives(results))}</p></header>'
        f'<div class="cards">{"".join(cards)}</div>{"".join(notes)}'
    )


def _objectives(results: StudyResults) -> str:
    lines = [f"{fields.short(name)}, {fields.direction_text(name)}" for name in fields.metric_directions(results)]
    return f"Metric: {lines[0]}." if len(lines) == 1 else f"Metrics: {'; '.join(lines)}. Ranked by the first."


def _sentence(line: str) -> str:
    head = line[0].upper() if line[0].isascii() else line[0]  # a λ stays one
    return escape(f"{head}{line[1:]}.")


def _card(kind: str, value: str, words: str) -> str:
    return f'<div class="card {kind}"><b>{escape(value)}</b><span>{words}</span></div>'
