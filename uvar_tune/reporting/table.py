"""The ranked table of trials, for the terminal and the page."""

from __future__ import annotations

from rich.table import Table

from uvar_tune.analysis.results import BASELINE, SEARCH, StudyResults, TrialResult
from uvar_tune.reporting import fields

_ROWS, _WIDTH = 30, 98  # of the table for the terminal
_NOISE = " ≈"  # follows a score that differs from the baseline's by less than the noise of one seed
_INFEASIBLE = " !"  # follows a score that comes with a violated constraint
_FIXED = ("rank", "trial", "kind")
_LAST = ("outcome", "attempts", "seconds")
_WORDS = ("kind", "outcome", "verdict", "feasible")


def columns(results: StudyResults) -> list[str]:
    """Names of all columns, in order."""
    verdict = ["verdict"] if any(results.verdict(trial) for trial in results.trials) else []
    bounded = ["feasible"] if any(trial.violations for trial in results.trials) else []
    return [
        *_FIXED,
        *fields.metric_directions(results),
        *verdict,
        *bounded,
        *fields.selected(results),
        *fields.parameters(results),
        *_effective_names(results),
        *fields.score_names(results),
        *_LAST,
    ]


def _effective_names(results: StudyResults) -> list[str]:
    names = dict.fromkeys(name for trial in results.trials for name in trial.effective_parameters)
    return [
        name + fields.EFFECTIVE
        for name in names
        if any(trial.effective_parameters.get(name) for trial in results.trials)
    ]


def is_text_column(results: StudyResults, name: str) -> bool:
    """Whether a column holds text, which is left-aligned."""
    return name in _WORDS or results.space.get(name, {}).get("type") == "categorical"


def cell(results: StudyResults, trial: TrialResult, rank: int | None, name: str):
    """The value of a trial in a column; None if there is none."""
    if name in _FIXED:
        return {"rank": rank, "trial": trial.number, "kind": trial.kind}[name]
    if name in _LAST:
        return {"outcome": fields.outcome(trial), "attempts": trial.attempts, "seconds": trial.seconds}[name]
    if name == results.metric:
        return trial.value
    if name in results.further_metrics:
        return trial.metric_values.get(name)
    if name == "verdict":
        return (results.verdict(trial) or {}).get("verdict")
    if name == "feasible":
        return None if not trial.violations else "yes" if trial.feasible else "no"
    if name.endswith(fields.EFFECTIVE):
        return trial.effective_parameters.get(name.removesuffix(fields.EFFECTIVE))
    if name.startswith("inference.") and fields.is_searched_per_checkpoint(results) and trial.state != "COMPLETE":
        return None  # not selected yet
    if "." in name:
        return trial.params.get(name) if fields.applies(results, trial, name) else None
    return trial.scores.get(name)


def ordered(results: StudyResults) -> list[tuple[int | None, TrialResult]]:
    """(rank, trial): those with a score, best first, then the others by number with rank None."""
    ranked = results.ranked()
    numbers = {trial.number for trial in ranked}
    return [*enumerate(ranked, 1), *((None, trial) for trial in results.trials if trial.number not in numbers)]


def ranked_table(results: StudyResults) -> Table:
    """The best 30 trials and the baseline, with as many columns as fit into 100 characters."""
    rows = ordered(results)
    shown = [row for i, row in enumerate(rows) if i < _ROWS or row[1].kind == BASELINE]
    names = _fitting(results, shown)
    omitted = len(rows) - len(shown)
    caption = f"{fields.outcomes(results)}. " + (f"{omitted:,} more trials are in the report. " if omitted else "")
    table = Table(
        title=f"{results.name}: {fields.short(results.metric)}, {fields.direction_text(results.metric)}",
        caption=caption + _reading_note(results),
    )
    for name in names:
        table.add_column(
            _head(results, name), justify="left" if is_text_column(results, name) else "right", no_wrap=True
        )
    best = results.best
    for rank, trial in shown:
        style = "bold" if trial is best else "yellow" if trial.kind == BASELINE else None if trial.feasible else "dim"
        table.add_row(*(_cell_text(results, trial, rank, name) for name in names), style=style)
    return table


def _reading_note(results: StudyResults) -> str:
    notes = ["The best of several is a candidate, not a result."]
    if results.best is not None and results.verdict(results.best) is not None:
        notes = ["Verdicts come from fresh paired seeds; the other scores are those of the search."]
    if any(fields.within_noise(results, trial) for trial in results.trials):
        notes.append("≈: as near to the baseline as another training seed.")
    if any(not trial.feasible for trial in results.trials):
        notes.append("!: violates a constraint.")
    return " ".join(notes)


def _head(results: StudyResults, name: str) -> str:
    return "time" if name == "seconds" else fields.label(results, name)


def _fitting(results: StudyResults, rows) -> list[str]:
    """The columns that fit: scores are dropped first, from the last, then time and further parameters.

    Columns that say nothing are left out: the spread of the inception score, what is the same in every row.
    """
    names = [name for name in columns(results) if not _says_nothing(results, rows, name)]
    own = [
        name for name in fields.parameters(results) if name not in (fields.LAMBDA_1, fields.LAMBDA_2, fields.REFERENCE)
    ]
    optional = [*own, "attempts", "seconds", *_effective_names(results), *fields.score_names(results)]
    optional = [name for name in optional if name in names]

    def width(name: str) -> int:
        return (
            max(
                len(_head(results, name)),
                *(len(_cell_text(results, trial, rank, name)) for rank, trial in rows),
                0,
            )
            + 3
        )

    free = _WIDTH - sum(width(name) for name in names if name not in optional)
    fitting = set()
    for name in optional:
        free -= width(name)
        if free < 0:
            break
        fitting.add(name)
    return [name for name in names if name not in optional or name in fitting]


def _says_nothing(results: StudyResults, rows, name: str) -> bool:
    if name == "attempts":
        return all(trial.attempts <= 1 for _, trial in rows)
    if name in ("kind", "outcome", "feasible"):  # part of other cells
        return True
    if name not in fields.score_names(results):
        return False
    return name == "is_std" or len({_cell_text(results, trial, rank, name) for rank, trial in rows} - {"–"}) < 2


def _cell_text(results: StudyResults, trial: TrialResult, rank: int | None, name: str) -> str:
    if name == "trial" and trial.kind != SEARCH:
        return f"{trial.number} {trial.kind}"
    if name == results.metric and trial.value is None:
        return fields.outcome(trial)
    value = cell(results, trial, rank, name)
    if name == "seconds":
        return fields.format_duration(value)
    if name == results.metric:
        marks = _NOISE * fields.within_noise(results, trial) + _INFEASIBLE * (not trial.feasible)
        return fields.format_value(value) + marks
    return fields.format_value(value)
