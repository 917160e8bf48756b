"""Warnings on the results of a study: optima at bounds, λ without effect, rungs that mislead the pruner, copies."""

from __future__ import annotations

import math
from typing import Any

from uvar_tune.analysis.results import StudyResults, TrialResult
from uvar_tune.reporting import fields

_EDGE = 0.02  # share of a range: an optimum this near to its end may be outside
_NEGLIGIBLE, _DOMINANT = 0.001, 0.5  # shares of the gradient of the cross-entropy
_SHARES = {fields.LAMBDA_1: "grad_share/second_order", fields.LAMBDA_2: "grad_share/semantic_entropy"}
_MIN_CORRELATION = 0.5  # rank correlation of a rung with the end below which it misleads
_COPIES = 0.01  # share of copies among the samples from which it is said
_MIN_TRIALS = 10  # for a statement about a rung


def study_warnings(results: StudyResults) -> list[str]:
    """All warnings, a line each without a full stop."""
    return [
        *boundary_warnings(results),
        *share_warnings(results),
        *rung_warnings(results),
        *feasibility_warnings(results),
        *memorisation_warnings(results),
    ]


def boundary_warnings(results: StudyResults) -> list[str]:
    """A line for each parameter whose best value is within 2 % of an end of its range, or at an end of what the search
    for inference points covered, also in the arms of the confirmation.
    """
    best = results.best
    if best is None:
        return []
    lines = [line for name, entry in results.space.items() if (line := _at_edge(best, name, entry, results))]
    lines += [
        f"the best {fields.label(results, name)} {fields.format_value(best.params[name])} is an end of the range that "
        "was searched for each checkpoint: a value beyond it may be better"
        for name in best.inference_at_bound
        if name in best.params and (name == fields.CFG or name not in results.space)
    ]
    for arm, row in results.confirmed.items():
        lines += [
            f"confirmation, {arm}: the selected {fields.label(results, name)} is an end of its range in a replicate; "
            "its score, and so the verdict, may change beyond it"
            for name in row.get("at_bound", [])
        ]
    return lines


def _at_edge(best: TrialResult, name: str, entry: dict[str, Any], results: StudyResults) -> str | None:
    low, high, value = entry.get("low"), entry.get("high"), best.params.get(name)
    if low is None or not isinstance(value, (int, float)) or not low <= value <= high:
        return None
    if not fields.applies(results, best, name) or (name == fields.CFG and fields.is_searched_per_checkpoint(results)):
        return None
    share = math.log(value / low) / math.log(high / low) if entry.get("log") else (value - low) / (high - low)
    if _EDGE < share < 1 - _EDGE:
        return None
    end, bound = ("lower", low) if share <= _EDGE else ("upper", high)
    return (
        f"the best {fields.label(results, name)} {fields.format_value(value)} is at the {end} bound "
        f"{fields.format_value(bound)} of its range: widen it and continue the search"
    )


def share_warnings(results: StudyResults) -> list[str]:
    """A line for each searched λ whose gradient share is below 0.1 % in all trials, or above 50 % in all."""
    lines = []
    for name, score in _SHARES.items():
        shares = [
            trial.scores[score]
            for trial in results.trials
            if name in results.space and trial.params.get(name) and math.isfinite(trial.scores.get(score, math.nan))
        ]
        if shares and max(shares) < _NEGLIGIBLE:
            lines.append(
                f"{fields.short(name)} has next to no effect in this range: at most {100 * max(shares):.2g} % of the "
                f"gradient of the cross-entropy over {_count(shares)}; search larger values"
            )
        if shares and min(shares) > _DOMINANT:
            lines.append(
                f"{fields.short(name)} dominates in this range: at least {100 * min(shares):.0f} % of the gradient of "
                f"the cross-entropy over {_count(shares)}; search smaller values"
            )
    return lines


def _count(shares: list[float]) -> str:
    return f"{len(shares):,} trial{'s' * (len(shares) > 1)}"


def rung_warnings(results: StudyResults) -> list[str]:
    """A line for each rung whose ranking of the trials differs from the final one."""
    poor = [
        row
        for row in results.rung_correlation
        if row["later"] == "end"
        and row["trials"] >= _MIN_TRIALS
        and row["spearman"] is not None
        and row["spearman"] < _MIN_CORRELATION
    ]
    return [
        f"after {row['rung']:,} images the ranking of the trials differs from the final one (Spearman "
        f"{row['spearman']:.2f} over {row['trials']:,}): a trial that was stopped there may have been good"
        for row in poor
    ]


def feasibility_warnings(results: StudyResults) -> list[str]:
    """A line if no trial satisfies every constraint."""
    best = results.best
    if best is None or best.feasible:
        return []
    violated = ", ".join(map(describe_constraint, best.violated))
    return [f"no trial satisfies every constraint; the best one violates {violated}"]


def memorisation_warnings(results: StudyResults) -> list[str]:
    """A line for the best trial and one for the baseline if its samples copy training images.

    More than 1 % of them, and more than twice as many as among held-out images.
    """
    lines = []
    named = [("the best trial", results.best), ("the baseline", results.baseline)]
    for name, trial in named if results.best is not results.baseline else named[1:]:
        share = trial.scores.get("copy_share", 0.0) if trial is not None else 0.0
        held_out = trial.scores.get("copy_share/held_out", 0.0) if trial is not None else 0.0
        if share > max(_COPIES, 2 * held_out):
            lines.append(
                f"{100 * share:.2g} % of the samples of {name} are near copies of training images "
                f"({100 * held_out:.2g} % of held-out images are): its {fields.short(results.metric)} rewards "
                "memory; compare fid/held_out and the NLL, or bound copy_share in study.constraints"
            )
    return lines


def describe_constraint(name: str) -> str:
    """A constraint for people: `nll_token max_above_baseline` becomes `NLL (max above baseline)`."""
    score, _, bound = name.partition(" ")
    return f"{fields.short(score)} ({bound.replace('_', ' ')})"
