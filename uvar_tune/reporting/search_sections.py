"""Sections of the page on the search: Pareto front, parameter importance, rank correlation of rungs."""

from __future__ import annotations

from uvar_tune.analysis.results import StudyResults
from uvar_tune.reporting import fields
from uvar_tune.reporting.sections import grid
from uvar_tune.reporting.table import is_text_column


def pareto_front(results: StudyResults) -> str:
    """The trials on the Pareto front."""
    names = list(fields.metric_directions(results))
    parameters = [*fields.selected(results), *fields.parameters(results)]
    trials = {trial.number: trial for trial in results.trials}
    shown = [trials[number] for number in results.pareto]
    rows = [
        [
            str(trial.number),
            *(trial.metric_values[name] for name in names),
            *(trial.params[name] if fields.applies(results, trial, name) else None for name in parameters),
        ]
        for trial in shown
    ]
    marks = ["base" if trial is results.baseline else "" for trial in shown]
    words = [0, *(at for at, name in enumerate(parameters, 1 + len(names)) if is_text_column(results, name))]
    table = grid(
        ["trial", *(fields.label(results, name) for name in [*names, *parameters])], rows, words=words, marks=marks
    )
    return f'<div class="scroll short">{table}</div>' if table else ""


def importance_caption(results: StudyResults) -> str:
    """Caption of the importance chart."""
    counted = sum(trial.kind != "baseline" for trial in results.ranked())
    unanswered = [name for name, shares in results.importances.items() if not shares]
    none = f" {', '.join(unanswered)} has no answer here." if unanswered else ""
    return (
        f"Over the {counted:,} trials that ran to the end, on the scale on which each parameter was searched. "
        "PED-ANOVA: what separates the best tenth (at least five trials) from the rest. fANOVA: the share of the "
        f"variance over the whole space that the parameter explains by itself. Neither gives a direction.{none}"
    )


def rung_correlations(results: StudyResults) -> str:
    """Rank correlations between rungs and with the end."""
    rows = [
        [
            f"{row['rung']:,} images",
            "the end" if row["later"] == "end" else f"{row['later']:,} images",
            row["trials"],
            _two(row["spearman"]),
            _two(row["kendall"]),
        ]
        for row in results.rung_correlation
    ]
    table = grid(["short run", "compared with", "trials in both", "Spearman", "Kendall"], rows, words=(0, 1))
    if not table:
        return ""
    return table + (
        '<p class="soft">1: the short run ranks the trials as the longer one does; 0: the rankings are unrelated. '
        "Stopped trials have no later value: these are the correlations of the survivors.</p>"
    )


def _two(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}"
