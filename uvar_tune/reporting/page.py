"""One self-contained page of a study: it opens without a network, figures and samples inside it."""

from __future__ import annotations

from html import escape
from pathlib import Path

from uvar_tune.errors import ConfigError
from uvar_tune.reporting import facts, sections
from uvar_tune.reporting.figures import profile_curves, training_curves
from uvar_tune.reporting.page_style import CSS, SCRIPT
from uvar_tune.reporting.study_figure import study_figure
from uvar_tune.study.results import StudyResults

_STUDY = ("Each line is a trial, coloured by its {objective}; the baseline (λ₁ = λ₂ = 0) is dashed. Lines through one category or "
          "CFG scale are spread a little.")
_PROFILE = ("Each checkpoint scored at several scales without retraining. The scale is chosen on one set of sampling seeds "
            "(lines) and told on another (diamonds).")
_DOUBT = ("is a candidate, not a result: it is the luckiest as well as the best, and another training seed alone moves such a "
          "score by several per cent. Repeat it and the baseline on fresh seeds.")
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def write_report(results: StudyResults, directory: Path) -> dict[str, Path]:
    """Write page and figures.

    Args:
        results: of a study with at least one score.

    Returns:
        {"html": …, "png": the study figure, "profile": …, "training": …}, the last two where there is something to draw.

    Raises:
        ConfigError: the directory cannot be written.
    """
    try:
        return _written(results, directory)
    except OSError as error:
        raise ConfigError(f"{error.filename or directory} cannot be written: {error.strerror}", where=str(directory)) from None


def _written(results: StudyResults, directory: Path) -> dict[str, Path]:
    directory.mkdir(parents=True, exist_ok=True)
    drawn = {"png": study_figure(results, directory / "study.png"), "profile": profile_curves(results, directory / "profile.png"),
             "training": training_curves(results, directory / "training.png")}
    figures = {name: path for name, path in drawn.items() if path is not None}
    page = directory / "report.html"
    staged = page.with_suffix(".tmp")
    staged.write_text(_page(results, figures), encoding="utf-8")
    staged.replace(page)
    return {"html": page, **figures}


def _page(results: StudyResults, figures: dict[str, Path]) -> str:
    name, objective = escape(results.name), facts.short(results.objective)
    parts = [
        _head(results),
        _section("The study", sections.figure(figures["png"], _STUDY.format(objective=objective))),
        _section("Trials", sections.table(results)),
        _section(f"{objective} over the CFG scale", sections.figure(figures.get("profile"), _PROFILE)),
        _section("Samples", sections.samples(results)),
        _section("Training of the best and of the baseline", sections.figure(figures.get("training"), "")),
        _section("Protocol: under which the scores were made", sections.protocol(results)),
        _section("Cost", sections.costs(results)),
        _section("Provenance", sections.provenance(results)),
    ]
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}: {objective}</title>'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
            f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{CSS}</style></head>\n<body>'
            f"{''.join(parts)}<script>{SCRIPT}</script></body></html>\n")


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>\n" if body else ""


def _head(results: StudyResults) -> str:
    best, baseline, objective = results.best, results.baseline, facts.short(results.objective)
    names = [name for name in (*facts.parameters(results), facts.CFG) if facts.applies(best, name)]
    where = ", ".join(f"{facts.short(name)} {facts.text(best.params[name], 3)}" for name in names)
    cards = [_card("best", facts.text(best.value), f"best {objective}: trial {best.number}<br>{escape(where)}")]
    if baseline is not None and baseline is not best:
        cfg = f", CFG {facts.text(baseline.params[facts.CFG])}" if facts.CFG in baseline.params else ""
        cards.append(_card("base", facts.text(baseline.value), f"baseline: trial {baseline.number}<br>λ₁ = λ₂ = 0{cfg}"))
    cards.append(_card("", f"{len(results.trials):,}", f"trials<br>{escape(facts.outcomes(results))}"))
    samples = results.protocol.get("samples")
    if samples:
        cards.append(_card("", f"{samples:,}", "samples a score"))
    compared = facts.against_baseline(results)
    notes = [f'<p class="note"><b>Verdict: unconfirmed.</b> {escape(compared) + ". " if compared else ""}The best of '
             f"{len(results.ranked()):,} {_DOUBT}</p>",
             *(f'<p class="note warn">{escape(line)}.</p>' for line in facts.boundary_warnings(results))]
    question = results.config.get("study", {}).get("question") or "No question was given."
    return (f'<header><h1>{escape(results.name)}</h1><p class="question">{escape(question)}</p>'
            f'<p class="soft">Objective: {escape(objective)}, {facts.direction_word(results.objective)}.</p></header>'
            f'<div class="cards">{"".join(cards)}</div>{"".join(notes)}')


def _card(kind: str, value: str, words: str) -> str:
    return f'<div class="card {kind}"><b>{escape(value)}</b><span>{words}</span></div>'
