"""What a reader should know before believing a study: bounds, λ that do nothing or everything, short runs that mislead."""

from __future__ import annotations

import math
from typing import Any

from uvar_tune.analysis.results import StudyResults, TrialResult
from uvar_tune.reporting import facts

_EDGE = 0.02  # of a range: nearer to its end than this, the optimum may lie outside
_NOTHING, _EVERYTHING = 0.001, 0.5  # of the CE's gradient
_SHARES = {facts.LAMBDA_1: "grad_share/second_order", facts.LAMBDA_2: "grad_share/semantic_entropy"}
_PROXY, _PROXY_TRIALS = 0.5, 10  # rank correlation below which a rung misleads, and how many trials it takes to say so


def cautions(results: StudyResults) -> list[str]:
    """One line each, without its full stop."""
    return [
        *boundary_warnings(results),
        *share_warnings(results),
        *rung_warnings(results),
        *feasibility_warnings(results),
    ]


def boundary_warnings(results: StudyResults) -> list[str]:
    """A line for each parameter whose best value sits within 2 % of an end of its range, or at an end of the profile."""
    best = results.best
    if best is None:
        return []
    lines = [line for name, entry in results.space.items() if (line := _at_edge(best, name, entry, results))]
    points = results.config.get("inference", {}).get("search_cfg_scales", []) if facts.profiled(results) else []
    if points and best.params.get(facts.CFG) == max(points):
        lines.append(
            f"the best CFG {facts.text(best.params[facts.CFG])} is the largest that the profile looks at: a larger one "
            "may be better"
        )
    return lines


def _at_edge(best: TrialResult, name: str, entry: dict[str, Any], results: StudyResults) -> str | None:
    low, high, value = entry.get("low"), entry.get("high"), best.params.get(name)
    if low is None or not isinstance(value, (int, float)) or not low <= value <= high:
        return None
    if not facts.applies(results, best, name) or (name == facts.CFG and facts.profiled(results)):
        return None
    share = math.log(value / low) / math.log(high / low) if entry.get("log") else (value - low) / (high - low)
    if _EDGE < share < 1 - _EDGE:
        return None
    end, bound = ("lower", low) if share <= _EDGE else ("upper", high)
    return (
        f"the best {facts.label(results, name)} {facts.text(value)} sits at the {end} bound {facts.text(bound)} of its range: "
        "widen it and search on"
    )


def share_warnings(results: StudyResults) -> list[str]:
    """A line for each searched λ that in no trial moved 0.1 % of the gradient, or in every trial more than 50 %."""
    lines = []
    for name, score in _SHARES.items():
        found = [
            trial.scores[score]
            for trial in results.trials
            if name in results.space and trial.params.get(name) and math.isfinite(trial.scores.get(score, math.nan))
        ]
        if found and max(found) < _NOTHING:
            lines.append(
                f"{facts.short(name)} does next to nothing in this range: at most {100 * max(found):.2g} % of the "
                f"gradient of the cross-entropy over {_count(found)}; search larger values"
            )
        if found and min(found) > _EVERYTHING:
            lines.append(
                f"{facts.short(name)} rules in this range: at least {100 * min(found):.0f} % of the gradient of the "
                f"cross-entropy over {_count(found)}; search smaller values"
            )
    return lines


def _count(found: list[float]) -> str:
    return f"{len(found):,} trial{'s' * (len(found) > 1)}"


def rung_warnings(results: StudyResults) -> list[str]:
    """A line for each rung that ranks the trials unlike the end."""
    poor = [
        row
        for row in results.rung_correlation
        if row["later"] == "end"
        and row["trials"] >= _PROXY_TRIALS
        and row["spearman"] is not None
        and row["spearman"] < _PROXY
    ]
    return [
        f"after {row['rung']:,} images the trials rank unlike at the end (Spearman {row['spearman']:.2f} over "
        f"{row['trials']:,}): what was stopped there may have been good"
        for row in poor
    ]


def feasibility_warnings(results: StudyResults) -> list[str]:
    """A line where no trial keeps every constraint."""
    best = results.best
    if best is None or best.feasible:
        return []
    return [f"no trial keeps every constraint; the best one oversteps {', '.join(map(constraint, best.violated))}"]


def constraint(name: str) -> str:
    """`nll_token max_above_baseline` in words."""
    score, _, bound = name.partition(" ")
    return f"{facts.short(score)} ({bound.replace('_', ' ')})"
