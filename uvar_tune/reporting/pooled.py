"""Reports of pooled studies: a table for the terminal and in Markdown, every trial as CSV, one figure."""

from __future__ import annotations

import csv
from pathlib import Path

from rich.table import Table

from uvar_tune.analysis.pooled import Pooled, mean_with_half_width
from uvar_tune.analysis.results import BASELINE, TrialResult
from uvar_tune.io.atomic import atomic_path, write_text_atomic
from uvar_tune.reporting import fields
from uvar_tune.reporting.charts import VERDICT_COLOURS
from uvar_tune.reporting.figures import BASELINE as BASELINE_COLOUR
from uvar_tune.reporting.figures import FAINT, canvas, save, styled

# Scores of each arm besides the study metric; the CSV has all.
SHOWN = (
    "entropy",
    "ece_token",
    "code_usage",
    "code_entropy",
    "grad_share/second_order",
    "grad_share/second_order_cosine",
    "grad_share/semantic_entropy",
    "grad_share/semantic_entropy_cosine",
)
AT_TERMINAL = SHOWN[:3]
DRAWN = ("entropy", "ece_token", "code_entropy")  # a panel each, besides the study metric
_TERMS = {fields.LAMBDA_1: "second_order", fields.LAMBDA_2: "semantic_entropy"}
_TITLES = {
    "entropy": "entropy",
    "ece_token": "ECE, tokens",
    "code_usage": "codes used",
    "code_entropy": "entropy of codes",
}


def pooled_rows(pooled: Pooled, shown: tuple[str, ...] = SHOWN) -> tuple[list[str], list[list[str]]]:
    """Column heads, and a row an arm: means over the seeds with 95 % intervals, and paired differences."""
    ran = [name for name in _TERMS if _weighted(pooled, name)]
    idle = tuple(f"grad_share/{term}" for name, term in _TERMS.items() if name not in ran)
    names = [
        name
        for name in shown
        if any(_seed_scores(trials, name) for trials in pooled.arms.values()) and not name.startswith(idle)
    ]
    objective = fields.short(pooled.first.metric)
    heads = [
        "arm",
        objective,
        "difference, 90 % interval",
        "p (Holm)",
        "verdict",
        *(fields.short(name + fields.EFFECTIVE) for name in ran),
        *(_TITLES.get(name) or fields.short(name) for name in names),
    ]
    rows = []
    for arm, trials in pooled.arms.items():
        weights = [
            _mean([(trial.effective_parameters or trial.params).get(name) for trial in trials.values()]) for name in ran
        ]
        scores = [_mean(_seed_scores(trials, name)) for name in names]
        rows.append(
            [arm, _mean([trial.value for trial in trials.values()]), *_difference_cells(pooled, arm), *weights, *scores]
        )
    return heads, rows


def pooled_table(pooled: Pooled) -> Table:
    """The table for the terminal."""
    heads, rows = pooled_rows(pooled, AT_TERMINAL)
    table = Table(
        title=f"{len(pooled.studies)} studies: {fields.short(pooled.first.metric)}, "
        f"{fields.direction_text(pooled.first.metric)}",
        caption=_legend(pooled),
    )
    for head in heads:
        table.add_column(head, justify="left" if head in ("arm", "verdict") else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row, style="yellow" if row[0] == BASELINE else None)
    return table


def write_pooled(pooled: Pooled, directory: Path) -> dict[str, Path]:
    """Write pooled.md, pooled.csv (a row a trial, every score) and pooled.png; their paths by name."""
    directory.mkdir(parents=True, exist_ok=True)
    heads, rows = pooled_rows(pooled)
    lines = ["| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *rows)]
    write_text_atomic(directory / "pooled.md", "\n".join(lines) + f"\n\n{_legend(pooled)}\n")
    _write_trials(pooled, directory / "pooled.csv")
    chart = pooled_chart(pooled, directory / "pooled.png")
    return {"table": directory / "pooled.md", "trials": directory / "pooled.csv", "chart": chart}


def pooled_chart(pooled: Pooled, path: Path) -> Path:
    """A panel a score: ticks for the seeds, a dot for the mean, a line for its interval, the baseline's mean dashed.

    The interval of few seeds may exceed the panel.
    """
    drawn = [name for name in DRAWN if all(_seed_scores(trials, name) for trials in pooled.arms.values())]
    with styled():
        figure = canvas(3.0 + 2.9 * (1 + len(drawn)), 1.3 + 0.32 * len(pooled.arms))
        panels = figure.subplots(1, 1 + len(drawn), squeeze=False, sharey=True)[0]
        for axes, name in zip(panels, [pooled.first.metric, *drawn], strict=True):
            every = []
            for height, (arm, trials) in enumerate(reversed(pooled.arms.items())):
                values = (
                    [trial.value for trial in trials.values()]
                    if name == pooled.first.metric
                    else _seed_scores(trials, name)
                )
                word = pooled.verdicts[arm].verdict if arm in pooled.verdicts else None
                colour = BASELINE_COLOUR if word is None else VERDICT_COLOURS[word]
                mean, reach = mean_with_half_width(values)
                every += values
                axes.plot([mean - reach, mean + reach], [height, height], color=colour, lw=1.2, alpha=0.5)
                axes.plot(values, [height] * len(values), ls="", marker="|", ms=10, color=FAINT)
                axes.plot(mean, height, marker="o", ms=6, color=colour)
                if arm == BASELINE:
                    axes.axvline(mean, color=BASELINE_COLOUR, lw=1.2, ls=(0, (4, 2)), zorder=0)
            axes.set_xlabel(_TITLES.get(name) or fields.short(name))
            axes.grid(visible=False, axis="y")
            margin = 0.25 * (max(every) - min(every)) or 1.0
            axes.set_xlim(min(every) - margin, max(every) + margin)
        panels[0].set_yticks(range(len(pooled.arms)), list(reversed(pooled.arms)))
        return save(figure, path)


def _weighted(pooled: Pooled, name: str) -> bool:
    """Whether the effective λ is above 0 in any trial."""
    return any(
        (trial.effective_parameters or trial.params).get(name)
        for trials in pooled.arms.values()
        for trial in trials.values()
    )


def _seed_scores(trials: dict[int, TrialResult], name: str) -> list[float]:
    """The score of each seed; [] if one lacks it."""
    values = [trial.scores.get(name) for trial in trials.values()]
    return [] if None in values else values


def _mean(values: list[float | None]) -> str:
    if not values or None in values:
        return "–"
    mean, reach = mean_with_half_width(values)
    return (
        fields.format_value(mean) if reach == 0 else f"{fields.format_value(mean, 3)} ± {fields.format_value(reach, 2)}"
    )


def _difference_cells(pooled: Pooled, arm: str) -> list[str]:
    """Difference, p and verdict of an arm; dashes for the baseline."""
    one = pooled.verdicts.get(arm)
    if one is None:
        return ["–", "–", "–"]
    interval = "" if one.low is None else f" [{one.low:+.3g}, {one.high:+.3g}]"
    p = [value for value in (one.p_adjusted, one.p_worse_adjusted) if value is not None]
    return [f"{one.difference:+.3g}{interval}", f"{min(p):.2g}" if p else "–", one.verdict]


def _legend(pooled: Pooled) -> str:
    seeds = ", ".join(f"{name} (seed {seed})" for name, seed in pooled.studies.items())
    notes = sorted({one.note for one in pooled.verdicts.values() if one.note})
    remarks = "".join(f" Note: {note}." for note in notes)
    remarks += "".join(f" No verdict on {arm}: {why}." for arm, why in pooled.untested.items())
    return (
        f"Studies: {seeds}. ±: half the 95 % interval of the mean over seeds (Student's t). Difference: from the "
        f"baseline of the same seed; p: one-sided, on the side of the difference, Holm's over the arms.{remarks}"
    )


def _write_trials(pooled: Pooled, path: Path) -> None:
    trials = [(arm, seed, trial) for arm, found in pooled.arms.items() for seed, trial in found.items()]
    params = list(dict.fromkeys(name for _, _, trial in trials for name in trial.params))
    ran = list(dict.fromkeys(name for _, _, trial in trials for name in trial.effective_parameters))
    scores = list(dict.fromkeys(name for _, _, trial in trials for name in trial.scores))
    with atomic_path(path) as staged, staged.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["arm", "seed", "trial", *params, *(name + fields.EFFECTIVE for name in ran), *scores])
        for arm, seed, trial in trials:
            writer.writerow(
                [
                    arm,
                    seed,
                    trial.number,
                    *(trial.params.get(name) for name in params),
                    *(trial.effective_parameters.get(name) for name in ran),
                    *(trial.scores.get(name) for name in scores),
                ]
            )
