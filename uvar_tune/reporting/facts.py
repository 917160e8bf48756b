"""What tables, figures and page say of a study, computed once: names, cells, warnings, costs."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from typing import Any

from uvar_tune.study.results import StudyResults, TrialResult
from uvar_tune.tracking.registry import metric

LAMBDA_1, LAMBDA_2, REFERENCE = "objective.lambda_1", "objective.lambda_2", "objective.reference"
CFG = "inference.cfg_scale"
_EDGE = 0.02  # of a range: nearer to its end than this, the optimum may lie outside
_SHORT = {LAMBDA_1: "λ₁", LAMBDA_2: "λ₂", CFG: "CFG", "fid": "FID", "kid": "KID", "is": "IS", "conditional_accuracy": "recognised",
          "nll_token": "NLL", "code_usage": "codes used"}


def short(name: str) -> str:
    """A dotted name or a metric as the head of a column."""
    return _SHORT.get(name, name.rpartition(".")[2].replace("_", " "))


def parameters(results: StudyResults) -> list[str]:
    """The searched parameters in the order of the study figure: λ1, λ2, reference, others; CFG, the last, apart."""
    first = [name for name in (LAMBDA_1, LAMBDA_2, REFERENCE) if name in results.space]
    return [*first, *(name for name in results.space if name not in (*first, CFG))]


def applies(trial: TrialResult, name: str) -> bool:
    """Whether a parameter entered the trial: the reference does where λ1 > 0."""
    if name == REFERENCE:
        return bool(trial.params.get(LAMBDA_1))
    return name in trial.params


def text(value: Any, digits: int = 4) -> str:
    """A value as it is read: four significant digits, nothing for what is not there."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}g}"


def outcome(trial: TrialResult) -> str:
    """One word for how the trial stands."""
    if trial.state == "COMPLETE":
        return "complete"
    return (trial.outcome or {"FAIL": "failed"}.get(trial.state, trial.state.lower())).replace("_", " ")


def outcomes(results: StudyResults) -> str:
    """`20 complete, 3 diverged, 1 running`."""
    counted = Counter(outcome(trial) for trial in results.trials)
    return ", ".join(f"{count} {name}" for name, count in counted.most_common())


def score_names(results: StudyResults) -> list[str]:
    """The scores beside the objective that any trial has, the registry's order kept by the trials themselves."""
    names = dict.fromkeys(name for trial in results.trials for name in trial.scores)
    return [name for name in names if name != results.objective]


def against_baseline(results: StudyResults) -> str | None:
    """The best beside the baseline, in words; None where the baseline has no score or is the best."""
    best, baseline = results.best, results.baseline
    if best is None or baseline is None or baseline.value is None or best is baseline:
        return None
    change = f" ({best.value / baseline.value - 1:+.1%})" if baseline.value else ""
    return f"{short(results.objective)} {text(best.value)} against {text(baseline.value)} of the baseline{change}"


def boundary_warnings(results: StudyResults) -> list[str]:
    """A line for each parameter whose best value sits within 2 % of an end of its range, or at an end of the profile."""
    best = results.best
    if best is None:
        return []
    lines = [line for name, entry in results.space.items() if (line := _at_edge(best, name, entry, results))]
    points = results.config.get("inference", {}).get("profile_cfg_scales", []) if profiled(results) else []
    if points and best.params.get(CFG) == max(points):
        lines.append(f"the best CFG {text(best.params[CFG])} is the largest that the profile looks at: a larger one may be better")
    return lines


def _at_edge(best: TrialResult, name: str, entry: dict[str, Any], results: StudyResults) -> str | None:
    low, high, value = entry.get("low"), entry.get("high"), best.params.get(name)
    if low is None or not isinstance(value, (int, float)) or not low <= value <= high or (name == CFG and profiled(results)):
        return None
    share = math.log(value / low) / math.log(high / low) if entry.get("log") else (value - low) / (high - low)
    if _EDGE < share < 1 - _EDGE:
        return None
    end, bound = ("lower", low) if share <= _EDGE else ("upper", high)
    return f"the best {short(name)} {text(value)} sits at the {end} bound {text(bound)} of its range: widen it and search on"


def profiled(results: StudyResults) -> bool:
    """Whether each trial chose its CFG scale by itself."""
    return results.config.get("inference", {}).get("mode") == "profile"


def costs(results: StudyResults) -> list[tuple[str, float, float | None]]:
    """(phase, CPU seconds of all trials, median of a trial), and what the commands measured of all their processes."""
    phases: dict[str, list[float]] = {}
    for trial in results.trials:
        for phase, seconds in trial.cpu_sec.items():
            phases.setdefault(phase, []).append(seconds)
    rows = [(phase, sum(each), statistics.median(each)) for phase, each in phases.items()]
    record = results.root / "cost.jsonl"
    commands = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    total = sum(seconds for command in commands for key, seconds in command.items() if key != "time")
    return [*rows, ("everything, all processes of all commands", total, None)] if commands else rows


def direction_word(name: str) -> str:
    """`lower is better` or `higher is better`."""
    return "lower is better" if metric(name).direction == "minimize" else "higher is better"
