"""The ranked table: rows for the terminal and for the page."""

from __future__ import annotations

from rich.table import Table

from uvar_tune.analysis.results import BASELINE, StudyResults, TrialResult
from uvar_tune.reporting import facts

_ROWS, _WIDTH = 30, 138  # of the terminal's table; the page has all rows
_FIXED = ("rank", "trial", "kind")
_LAST = ("outcome", "attempts", "seconds")
_WORDS = ("kind", "outcome", "verdict", "feasible")


def columns(results: StudyResults) -> list[str]:
    """Names of all columns, in order."""
    judged = ["verdict"] if any(results.verdict(trial) for trial in results.trials) else []
    bounded = ["feasible"] if any(trial.violations for trial in results.trials) else []
    return [
        *_FIXED,
        *facts.objectives(results),
        *judged,
        *bounded,
        *facts.chosen(results),
        *facts.parameters(results),
        *_ran(results),
        *facts.score_names(results),
        *_LAST,
    ]


def _ran(results: StudyResults) -> list[str]:
    names = dict.fromkeys(name for trial in results.trials for name in trial.effective_parameters)
    return [name + facts.RAN for name in names if any(trial.effective_parameters.get(name) for trial in results.trials)]


def worded(results: StudyResults, name: str) -> bool:
    """Whether a column holds words, which stand at the left."""
    return name in _WORDS or results.space.get(name, {}).get("type") == "categorical"


def cell(results: StudyResults, trial: TrialResult, rank: int | None, name: str):
    """The value of a column, None where there is none."""
    if name in _FIXED:
        return {"rank": rank, "trial": trial.number, "kind": trial.kind}[name]
    if name in _LAST:
        return {"outcome": facts.outcome(trial), "attempts": trial.attempts, "seconds": trial.seconds}[name]
    if name == results.metric:
        return trial.value
    if name in results.further_metrics:
        return trial.metric_values.get(name)
    if name == "verdict":
        return (results.verdict(trial) or {}).get("verdict")
    if name == "feasible":
        return None if not trial.violations else "yes" if trial.feasible else "no"
    if name.endswith(facts.RAN):
        return trial.effective_parameters.get(name.removesuffix(facts.RAN))
    if name.startswith("inference.") and facts.profiled(results) and trial.state != "COMPLETE":
        return None  # not decided yet
    if "." in name:
        return trial.params.get(name) if facts.applies(results, trial, name) else None
    return trial.scores.get(name)


def ordered(results: StudyResults) -> list[tuple[int | None, TrialResult]]:
    """(rank, trial): those with a score, best first, then the others by number, without a rank."""
    ranked = results.ranked()
    numbers = {trial.number for trial in ranked}
    return [*enumerate(ranked, 1), *((None, trial) for trial in results.trials if trial.number not in numbers)]


def ranked_table(results: StudyResults) -> Table:
    """The trials, best first, the baseline marked; the best 30 of a long study, and as many columns as 140 characters hold."""
    rows = ordered(results)
    shown = [row for i, row in enumerate(rows) if i < _ROWS or row[1].kind == BASELINE]
    names = _fitting(results, shown)
    left = len(rows) - len(shown)
    caption = f"{facts.outcomes(results)}. " + (f"{left:,} more trials are in the report. " if left else "")
    table = Table(
        title=f"{results.name}: {facts.short(results.metric)}, {facts.direction_word(results.metric)}",
        caption=caption + _moral(results),
    )
    for name in names:
        table.add_column(facts.label(results, name), justify="left" if worded(results, name) else "right", no_wrap=True)
    best = results.best
    for rank, trial in shown:
        style = "bold" if trial is best else "yellow" if trial.kind == BASELINE else None if trial.feasible else "dim"
        table.add_row(*(_shown(results, trial, rank, name) for name in names), style=style)
    return table


def _moral(results: StudyResults) -> str:
    if results.best is None or results.verdict(results.best) is None:
        return "The best of several is a candidate, not a result."
    return "Verdicts come from fresh paired seeds; the other scores are those of the search."


def _fitting(results: StudyResults, rows) -> list[str]:
    """All columns but those for which there is no room: scores go first, from the last, then what describes the run."""
    names = columns(results)
    own = [name for name in facts.parameters(results) if name not in (facts.LAMBDA_1, facts.LAMBDA_2, facts.REFERENCE)]
    optional = [*own, "attempts", "seconds", *_ran(results), *facts.score_names(results)]

    def width(name: str) -> int:
        return (
            max(len(facts.label(results, name)), *(len(_shown(results, trial, rank, name)) for rank, trial in rows), 0)
            + 3
        )

    room = _WIDTH - sum(width(name) for name in names if name not in optional)
    kept = set()
    for name in optional:
        room -= width(name)
        if room < 0:
            break
        kept.add(name)
    return [name for name in names if name not in optional or name in kept]


def _shown(results: StudyResults, trial: TrialResult, rank: int | None, name: str) -> str:
    value = cell(results, trial, rank, name)
    if name == "seconds":
        return facts.text(value if value is None else round(value))
    return facts.text(value)
