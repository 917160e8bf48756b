"""The parts of the page, each a piece of HTML, empty where there is nothing to show. All text is escaped here."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path
from typing import Any

import yaml

from uvar_tune.reporting import facts
from uvar_tune.reporting.table import cell, columns, ordered
from uvar_tune.study.results import BASELINE, StudyResults, TrialResult
from uvar_tune.tracking.uri import shown

_WIDEST_PIXELS = 1400  # a grid of samples wider than this is made smaller for the page


def figure(path: Path | None, caption: str) -> str:
    """A picture with its caption, within the page."""
    if path is None:
        return ""
    alt = escape(caption or path.stem, quote=True)
    return f'<figure><img src="{_inlined(path)}" alt="{alt}"><figcaption>{caption}</figcaption></figure>'


def _inlined(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def table(results: StudyResults) -> str:
    """All trials, ranked, to be sorted by a click; raw values beside the rounded ones, for the sorting."""
    names = columns(results)
    words = {name for name in names if name in ("kind", "outcome") or results.space.get(name, {}).get("type") == "categorical"}
    heads = "".join(f'<th{_word(name in words)} title="{escape(name)}">{escape(facts.short(name))}</th>' for name in names)
    rows = []
    for rank, trial in ordered(results):
        marked = "best" if trial is results.best else "base" if trial.kind == BASELINE else ""
        cells = "".join(_cell(cell(results, trial, rank, name), name in words) for name in names)
        rows.append(f'<tr class="{marked}">{cells}</tr>' if marked else f"<tr>{cells}</tr>")
    return (f'<div class="scroll"><table class="sortable"><thead><tr>{heads}</tr></thead>'
            f'<tbody>{"".join(rows)}</tbody></table></div>'
            '<p class="soft">A click on a head sorts. The reference enters only where λ₁ &gt; 0.</p>')


def _cell(value: Any, word: bool) -> str:
    key = "" if value is None else f' data-v="{escape(str(value), quote=True)}"'
    return f"<td{_word(word)}{key}>{escape(facts.text(value))}</td>"


def _word(word: bool) -> str:
    return ' class="word"' if word else ""


def samples(results: StudyResults) -> str:
    """The last grid of the best beside that of the baseline."""
    best, baseline = results.best, results.baseline
    shown = [("Best", best), *([("Baseline", baseline)] if baseline is not None and baseline is not best else [])]
    figures = [f'<figure><img src="{_picture(path)}" alt="samples of trial {trial.number}"><figcaption>{name}: trial '
               f"{trial.number}, {facts.short(results.objective)} {facts.text(trial.value)}</figcaption></figure>"
               for name, trial in shown if (path := _last_picture(trial)) is not None]
    return f'<div class="pair">{"".join(figures)}</div><p class="soft">A row a class.</p>' if figures else ""


def _last_picture(trial: TrialResult) -> Path | None:
    return max((trial.directory / "samples").glob("*.png"), default=None)


def _picture(path: Path) -> str:
    from PIL import Image

    with Image.open(path) as picture:
        if picture.width <= _WIDEST_PIXELS:
            return _inlined(path)
        picture.thumbnail((_WIDEST_PIXELS, 10 * _WIDEST_PIXELS))
        smaller = io.BytesIO()
        picture.save(smaller, format="PNG")
    return "data:image/png;base64," + base64.b64encode(smaller.getvalue()).decode()


def protocol(results: StudyResults) -> str:
    return pairs({name.replace("_", " "): value for name, value in results.protocol.items() if value != ""})


def pairs(values: dict[str, Any]) -> str:
    lines = "".join(f"<dt>{escape(str(name))}</dt><dd>{escape(facts.text(value))}</dd>" for name, value in values.items())
    return f"<dl>{lines}</dl>" if lines else ""


def costs(results: StudyResults) -> str:
    rows = "".join(f'<tr><td class="word">{escape(phase)}</td><td>{total:,.0f}</td>'
                   f'<td>{"–" if each is None else f"{each:,.1f}"}</td></tr>' for phase, total, each in facts.costs(results))
    head = '<tr><th class="word">phase</th><th>CPU seconds</th><th>median of a trial</th></tr>'
    return f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>" if rows else ""


def provenance(results: StudyResults) -> str:
    """Code, versions, machine and seeds of the best; the configuration and the space."""
    best = results.best
    made_by = {name: ", ".join(f"{key} {version}" for key, version in value.items()) if isinstance(value, dict) else value
               for name, value in best.made_by.items()}
    seeds = ", ".join(f"{purpose} {seed}" for purpose, seed in best.seeds.items())
    config, space = (escape(yaml.safe_dump(_shown(tree), sort_keys=False, allow_unicode=True))
                     for tree in (results.config, results.space))
    return (pairs({**made_by, "study seed": str(results.seed), "seeds of the best": seeds})
            + f"<details><summary>Configuration</summary><pre>{config}</pre></details>"
              f"<details><summary>Search space</summary><pre>{space}</pre></details>")


def _shown(tree: Any) -> Any:
    """Plain data for a page that is passed around: URLs without user and password."""
    if isinstance(tree, dict):
        return {key: _shown(value) for key, value in tree.items()}
    return shown(tree) if isinstance(tree, str) and "://" in tree else tree
