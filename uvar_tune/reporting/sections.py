"""Sections of the page as HTML, empty if there is nothing to display. All text is escaped here."""

from __future__ import annotations

import base64
import io
from collections.abc import Container, Sequence
from html import escape
from pathlib import Path
from typing import Any

import yaml

from uvar_tune.analysis.results import BASELINE, StudyResults, TrialResult
from uvar_tune.io.uri import redact_url
from uvar_tune.reporting import costs as spent
from uvar_tune.reporting import fields, warnings
from uvar_tune.reporting.table import cell, columns, is_text_column, ordered

MAX_ROWS = 1000  # of the table of trials
_MAX_WIDTH = 1400  # pixels; wider sample grids are downscaled


def figure(
    path: Path | None, caption: str, narrow: bool = False, charts: Sequence[str] = (), of_charts: str = ""
) -> str:
    """An embedded image with its caption (HTML), and the places of the charts that replace it on a screen.

    Args:
        path: of the image; None gives an empty text.
        caption: HTML.
        narrow: whether the figure is narrower than the page.
        of_charts: caption while the charts are displayed; empty if it is the same.
        charts: ids of the charts; without them, or without a script, the image is what is displayed.
    """
    if path is None:
        return ""
    alt = escape(caption or path.stem, quote=True)
    kind = ' class="narrow"' if narrow else ""
    places = "".join(
        f'<div class="chart" id="chart-{escape(name)}" role="group" aria-label="{alt or escape(name)}"></div>'
        for name in charts
    )
    still = ' class="still"' if charts else ""
    image = _with_fewer_colours(path) if charts else _inlined(path)
    if charts and of_charts:
        caption = f'<span class="still">{caption}</span><span class="chart">{of_charts}</span>'
    return f'<figure{kind}>{places}<img{still} src="{image}" alt="{alt}"><figcaption>{caption}</figcaption></figure>'


def _with_fewer_colours(path: Path) -> str:
    """For print: 128 colours take a third of the space."""
    from PIL import Image

    written = io.BytesIO()
    with Image.open(path) as picture:
        picture.convert("RGB").quantize(128).save(written, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(written.getvalue()).decode()


def _inlined(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def table(results: StudyResults) -> str:
    """All trials, ranked, in a table that is sortable by unrounded values."""
    names = columns(results)
    words = {name for name in names if is_text_column(results, name)}
    heads = "".join(
        f'<th{_word(name in words)} title="{escape(name)}">{escape(fields.label(results, name))}</th>' for name in names
    )
    rows = []
    every = ordered(results)
    kept = [row for at, row in enumerate(every) if at < MAX_ROWS or row[1] is results.baseline]
    for rank, trial in kept:
        marked = (
            "best"
            if trial is results.best
            else "base"
            if trial.kind == BASELINE
            else ""
            if trial.feasible
            else "violated"
        )
        why = f' title="{escape(_why(trial), quote=True)}"' if trial.violated else ""
        cells = "".join(_cell(cell(results, trial, rank, name), name in words) for name in names)
        named = f' class="{marked}"' if marked else ""
        rows.append(f'<tr{named} data-trial="{trial.number}"{why}>{cells}</tr>')
    notes = "A click on a head sorts." + (
        " The reference enters only where λ₁ &gt; 0." if fields.REFERENCE in names else ""
    )
    if "feasible" in names:
        notes += " Trials that violate a constraint are ranked behind the others."
    if len(kept) < len(every):
        notes += f" {len(every) - len(kept):,} of {len(every):,} trials, the lowest in rank, are left out of this page."
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="Trials">'
        f'<table class="sortable" id="trials"><thead><tr>{heads}</tr></thead>'
        f'<tbody>{"".join(rows)}</tbody></table></div><p class="soft">{notes}</p>'
    )


def _why(trial: TrialResult) -> str:
    return f"violates {', '.join(map(warnings.describe_constraint, trial.violated))}"


def grid(heads: list[str], rows: list[list[Any]], words: Container[int] = (0,), marks: list[str] | None = None) -> str:
    """A small table.

    Args:
        heads: column heads.
        rows: cells; a `Raw` one is HTML, None a dash, others text.
        words: indices of the text columns.
        marks: CSS class of each row.
    """

    def line(cells, tag: str) -> str:
        return "".join(f"<{tag}{_word(column in words)}>{_html(value)}</{tag}>" for column, value in enumerate(cells))

    if not rows:
        return ""
    body = "".join(
        f'<tr class="{mark}">{line(cells, "td")}</tr>'
        for cells, mark in zip(rows, marks or [""] * len(rows), strict=True)
    )
    return f'<div class="wide"><table><thead><tr>{line(heads, "th")}</tr></thead><tbody>{body}</tbody></table></div>'


def _html(value: Any) -> str:
    return value if isinstance(value, Raw) else escape(fields.format_value(value))


class Raw(str):
    """Text that is HTML."""


def _cell(value: Any, word: bool) -> str:
    key = "" if value is None else f' data-v="{escape(str(value), quote=True)}"'
    return f"<td{_word(word)}{key}>{escape(fields.format_value(value))}</td>"


def _word(word: bool) -> str:
    return ' class="word"' if word else ""


def samples(results: StudyResults) -> str:
    """The last sample grids of the best trial and the baseline."""
    best, baseline = results.best, results.baseline
    shown = [("Best", best), *([("Baseline", baseline)] if baseline is not None and baseline is not best else [])]
    figures = [
        f'<figure><img src="{_grid_image(path)}" alt="samples of trial {trial.number}"><figcaption>{name}: trial '
        f"{trial.number}, {fields.short(results.metric)} {fields.format_value(trial.value)}</figcaption></figure>"
        for name, trial in shown
        if (path := _last_grid(trial)) is not None
    ]
    return f'<div class="pair">{"".join(figures)}</div><p class="soft">One row per class.</p>' if figures else ""


def _last_grid(trial: TrialResult) -> Path | None:
    return max((trial.directory / "samples").glob("*.png"), default=None)


def _grid_image(path: Path) -> str:
    from PIL import Image

    with Image.open(path) as picture:
        if picture.width <= _MAX_WIDTH:
            return _inlined(path)
        picture.thumbnail((_MAX_WIDTH, 10 * _MAX_WIDTH))
        smaller = io.BytesIO()
        picture.save(smaller, format="PNG")
    return "data:image/png;base64," + base64.b64encode(smaller.getvalue()).decode()


def protocol(results: StudyResults) -> str:
    """The protocol of the scores."""
    return pairs({name.replace("_", " "): value for name, value in results.protocol.items() if value != ""})


def pairs(values: dict[str, Any]) -> str:
    """A list of names and values."""
    lines = "".join(
        f"<dt>{escape(str(name))}</dt><dd>{escape(fields.format_value(value))}</dd>" for name, value in values.items()
    )
    return f"<dl>{lines}</dl>" if lines else ""


def costs(results: StudyResults) -> str:
    """How the time was spent; wall time in hours of a place for one trial."""
    found = spent.costs(results)
    whole = sum(row.wall_sec or 0.0 for row in found)
    rows = [
        [
            row.phase,
            *_wall(row.wall_sec, whole),
            None if row.cpu_sec is None else f"{row.cpu_sec:,.0f}",
            None if row.cpu_sec_median is None else f"{row.cpu_sec_median:,.1f}",
        ]
        for row in found
    ]
    heads = ["phase", "hours of a place", "share", "CPU seconds", "median of a trial"]
    notes = []
    if whole:
        notes.append(
            "A place is what one trial occupies. The time of a trial after its start-up is divided in proportion to "
            "the CPU seconds of training and evaluation."
        )
    if results.idle_sec:
        notes.append("A place is idle while others work; as many places are counted as trials ever ran at once.")
    return grid(heads, rows) + (f'<p class="soft">{" ".join(notes)}</p>' if notes else "")


def _wall(seconds: float | None, whole: float) -> tuple[str | None, str | None]:
    return (None, None) if seconds is None else (f"{seconds / 3600:,.3g}", f"{seconds / whole:.0%}")


def provenance(results: StudyResults) -> str:
    """Code, versions, machine and seeds of the best trial, the configuration and the space."""
    best = results.best
    origin = {
        name: ", ".join(f"{key} {version}" for key, version in value.items()) if isinstance(value, dict) else value
        for name, value in best.provenance.items()
    }
    seeds = ", ".join(f"{purpose} {seed}" for purpose, seed in best.seeds.items())
    config, space = (
        escape(yaml.safe_dump(_redacted(tree), sort_keys=False, allow_unicode=True))
        for tree in (results.config, results.space)
    )
    return (
        pairs({**origin, "study seed": str(results.seed), "seeds of the best": seeds})
        + f"<details><summary>Configuration</summary><pre>{config}</pre></details>"
        f"<details><summary>Search space</summary><pre>{space}</pre></details>"
    )


def _redacted(tree: Any) -> Any:
    """Plain data with URLs without user and password."""
    if isinstance(tree, dict):
        return {key: _redacted(value) for key, value in tree.items()}
    return redact_url(tree) if isinstance(tree, str) and "://" in tree else tree
