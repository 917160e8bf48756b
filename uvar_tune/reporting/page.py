"""One self-contained page of a study: it opens without a network, figures and samples inside it."""

from __future__ import annotations

from html import escape
from pathlib import Path

from uvar_tune.analysis.results import StudyResults
from uvar_tune.errors import ConfigError
from uvar_tune.io.atomic import write_text_atomic
from uvar_tune.reporting import confirmed, facts, searched, sections
from uvar_tune.reporting.cautions import cautions
from uvar_tune.reporting.charts import importance_chart, pareto_chart, verdict_chart
from uvar_tune.reporting.figures import profile_curves, several_axes, training_curves
from uvar_tune.reporting.page_style import CSS, SCRIPT
from uvar_tune.reporting.study_figure import study_figure

_STUDY = (
    "Each line is a trial, coloured by its {objective}; the baseline (λ₁ = λ₂ = 0) is dashed. Lines through one category, or "
    "one CFG scale of several trials, are spread a little."
)
_PROFILE = (
    "Each checkpoint scored at several scales without retraining. The scale is chosen on one set of sampling seeds "
    "({drawn}) and told on another (diamonds)."
)
_LINES, _DOTS = "lines", "dots; where a scale was scored several times, the best of them"
_VERDICTS = (
    "Dots: the mean difference of an arm from the baseline; bars: its 90 % interval, each arm taken alone; ticks: the "
    "single pairs of seeds."
)
_FRONT = (
    "Every trial with a score, save what is far worse than the rest. On the front: what no other trial equals or beats in "
    "all objectives."
)
_NAMED = 8  # parameters named beside the best
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def write_report(results: StudyResults, directory: Path) -> dict[str, Path]:
    """Write page and figures.

    Args:
        results: of a study with at least one score.

    Returns:
        {"html": …, "png": the study figure, and where there is something to draw "profile", "training", "verdicts",
        "importance", "pareto"}.

    Raises:
        ConfigError: the directory cannot be written.
    """
    try:
        return _written(results, directory)
    except OSError as error:
        raise ConfigError(
            f"{error.filename or directory} cannot be written: {error.strerror}", where=str(directory)
        ) from None


def _written(results: StudyResults, directory: Path) -> dict[str, Path]:
    directory.mkdir(parents=True, exist_ok=True)
    drawn = {
        "png": study_figure(results, directory / "study.png"),
        "profile": profile_curves(results, directory / "profile.png"),
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
    name, objective = escape(results.name), facts.short(results.metric)
    profile = _PROFILE.format(drawn=_DOTS if several_axes(results) else _LINES)
    captions = {
        "png": _STUDY.format(objective=objective),
        "profile": profile,
        "training": "",
        "verdicts": _VERDICTS,
        "importance": searched.importance_notes(results),
        "pareto": _FRONT,
    }
    drawn = {
        key: sections.figure(figures.get(key), caption, narrow=key not in ("png", "training"))
        for key, caption in captions.items()
    }
    parts = [
        _head(results),
        _section("Verdicts on fresh seeds", drawn["verdicts"] + confirmed.verdicts(results)),
        _section("The 2×2: each term alone, and both", confirmed.factorial(results)),
        _section("The study", drawn["png"]),
        _section("Trials", sections.table(results)),
        _section("Several objectives", drawn["pareto"] + searched.front(results)),
        _section(f"{objective} over the CFG scale", drawn["profile"]),
        _section("Samples", sections.samples(results)),
        _section("Which parameters matter", drawn["importance"]),
        _section("Noise of the baseline", confirmed.noise(results)),
        _section("Is the short run a valid proxy?", searched.proxies(results)),
        _section("Training of the best and of the baseline", drawn["training"]),
        _section("Protocol: under which the scores were made", sections.protocol(results)),
        _section("Cost", sections.costs(results)),
        _section("Provenance", sections.provenance(results)),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}: {objective}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{CSS}</style></head>\n<body>'
        f"{''.join(parts)}<script>{SCRIPT}</script></body></html>\n"
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>\n" if body else ""


def _head(results: StudyResults) -> str:
    best, baseline, objective = results.best, results.baseline, facts.short(results.metric)
    names = [
        name for name in (*facts.parameters(results), *facts.chosen(results)) if facts.applies(results, best, name)
    ]
    where = ", ".join(f"{facts.label(results, name)} {facts.text(best.params[name], 3)}" for name in names[:_NAMED])
    where += ", …" if len(names) > _NAMED else ""
    cards = [_card("best", facts.text(best.value), f"best {objective}: trial {best.number}<br>{escape(where)}")]
    if baseline is not None and baseline is not best:
        cfg = f", CFG {facts.text(baseline.params[facts.CFG])}" if facts.CFG in baseline.params else ""
        cards.append(
            _card("base", facts.text(baseline.value), f"baseline: trial {baseline.number}<br>λ₁ = λ₂ = 0{cfg}")
        )
    cards.append(_card("", f"{len(results.trials):,}", f"trials<br>{escape(facts.outcomes(results))}"))
    samples = results.protocol.get("samples")
    if samples:
        cards.append(_card("", f"{samples:,}", "samples a score"))
    notes = [
        confirmed.headline(results),
        *(f'<p class="note warn">{_sentence(line)}</p>' for line in cautions(results)),
    ]
    question = results.config.get("study", {}).get("question") or "No question was given."
    return (
        f'<header><h1>{escape(results.name)}</h1><p class="question">{escape(question)}</p>'
        f'<p class="soft">{escape(_objectives(results))}</p></header>'
        f'<div class="cards">{"".join(cards)}</div>{"".join(notes)}'
    )


def _objectives(results: StudyResults) -> str:
    told = [f"{facts.short(name)}, {facts.direction_word(name)}" for name in facts.objectives(results)]
    return f"Objective: {told[0]}." if len(told) == 1 else f"Objectives: {'; '.join(told)}. Ranked by the first."


def _sentence(line: str) -> str:
    head = line[0].upper() if line[0].isascii() else line[0]  # a λ stays one
    return escape(f"{head}{line[1:]}.")


def _card(kind: str, value: str, words: str) -> str:
    return f'<div class="card {kind}"><b>{escape(value)}</b><span>{words}</span></div>'
