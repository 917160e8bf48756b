"""Notes for optuna-dashboard: the state of a study, and how each of its notable trials compares and is run again."""

from __future__ import annotations

from collections.abc import Iterator

from uvar_tune.analysis.results import BASELINE, StudyResults, TrialResult
from uvar_tune.config.schema import Config
from uvar_tune.reporting import describe_state
from uvar_tune.search.dashboard import save_notes
from uvar_tune.tracking.parameters import view_axes
from uvar_tune.tracking.presentation import DESCRIPTION, literal, study_description, trial_description

_MAX_RANKED, _MAX_ENDED = 20, 20  # trials that get a note: Optuna copies all notes of a study at each access


def write_notes(
    config: Config, storage_url: str, results: StudyResults, comparisons: dict[int, dict[str, str]]
) -> None:
    """Write the notes of the study, its best trials, its baseline and its first trials without a score.

    Args:
        config: of the study.
        storage_url: of its storage.
        results: of the study.
        comparisons: trial number → the tags that compare it with the baseline.
    """
    notes = {
        trial.number: _trial_note(config, results, trial, rank, comparisons.get(trial.number, {}))
        for rank, trial in _noted(results)
    }
    question, best = config.study.question, results.best
    text = study_description(results.name, question, describe_state(results), best and best.number, links=False)
    text = text[DESCRIPTION]
    if len(results.trials) > len(notes):
        text += f"\n\n{len(notes)} trials have notes: the best, the baseline, and the first that ended without a score."
    save_notes(config, storage_url, text, notes)


def _noted(results: StudyResults) -> Iterator[tuple[int | None, TrialResult]]:
    """(rank, trial) of the trials that get a note."""
    for rank, trial in enumerate(results.ranked(), 1):
        if rank <= _MAX_RANKED or trial.kind == BASELINE:
            yield rank, trial
    ended = [trial for trial in results.trials if trial.state in ("PRUNED", "FAIL")]
    yield from ((None, trial) for trial in ended[:_MAX_ENDED])


def _trial_note(
    config: Config, results: StudyResults, trial: TrialResult, rank: int | None, comparison: dict[str, str]
) -> str:
    lines = []
    if rank is None:
        lines.append(f"**Ended without a score:** {literal(str(trial.outcome or trial.state)).replace('&#95;', ' ')}")
    else:
        lines.append(
            f"**Rank {rank}**, {results.metric} {trial.value:.4g}" + (" (the baseline)" * (trial.kind == BASELINE))
        )
    if difference := comparison.get("uvar.difference"):
        lines.append(f"**Against the baseline:** {difference}; verdict: {comparison['uvar.verdict']}")
    if trial.violations:
        broken = [f"{literal(name)} by {trial.violations[name]:.3g}" for name in trial.violated]
        lines.append("**Constraints:** " + ("violates " + ", ".join(broken) if broken else "all hold"))
    settings = {name: trial.params[name] for name in view_axes(config) if name in trial.params}
    lines += [_table("setting", settings), _table("score", trial.scores)]
    lines.append(trial_description(results.name, trial.number)[DESCRIPTION])
    return "\n\n".join(line for line in lines if line)


def _table(head: str, values: dict) -> str:
    if not values:
        return ""
    rows = [
        f"| {literal(name)} | {literal(f'{value:.4g}' if isinstance(value, float) else str(value))} |"
        for name, value in values.items()
        if "/scale_" not in name
    ]
    return "\n".join([f"| {head} | value |", "|---|---|", *rows])
