"""Names and values of a study as tables, figures and the page display them."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from uvar_tune.analysis.results import OF_LAMBDA_1, StudyResults, TrialResult
from uvar_tune.metrics import METRICS, metric
from uvar_tune.tracking.presentation import is_within_noise

LAMBDA_1, LAMBDA_2, REFERENCE = "loss.lambda_1", "loss.lambda_2", "loss.reference"
CFG = "inference.cfg_scale"
EFFECTIVE = " (effective)"  # suffix of the λ that realises a searched gradient share
_SHORT = {
    LAMBDA_1: "λ₁",
    LAMBDA_2: "λ₂",
    CFG: "CFG",
    "grad_share/second_order": "2nd's gradient",
    "grad_share/semantic_entropy": "SE's gradient",
    "grad_share/second_order_cosine": "2nd·CE cosine",
    "grad_share/semantic_entropy_cosine": "SE·CE cosine",
}


def short(name: str) -> str:
    """A dotted name or a metric as a column head."""
    if name.endswith(EFFECTIVE):
        return short(name.removesuffix(EFFECTIVE)) + EFFECTIVE
    registered = METRICS[name].short if name in METRICS else None
    return registered or _SHORT.get(name, name.rpartition(".")[2].replace("_", " "))


def label(results: StudyResults, name: str) -> str:
    """`short`, with a prefix for a λ that is searched as a gradient share (`loss.lambda_unit`)."""
    share = name in (LAMBDA_1, LAMBDA_2) and results.config.get("loss", {}).get("lambda_unit") == "share"
    return f"share of {short(name)}" if share else short(name)


def metric_directions(results: StudyResults) -> dict[str, str]:
    """Metric → direction, the study metric first."""
    return {results.metric: results.direction, **results.further_metrics}


def parameters(results: StudyResults) -> list[str]:
    """The searched parameters in the order of the study figure: λ1, λ2, reference, others; without CFG."""
    searched = [name for name, entry in results.space.items() if entry.get("role") != "fixed" and name != CFG]
    first = [name for name in (LAMBDA_1, LAMBDA_2, REFERENCE) if name in searched]
    return [*first, *(name for name in searched if name not in first)]


def selected(results: StudyResults) -> list[str]:
    """CFG, then inference parameters outside the space whose selected values differ between trials."""
    names = dict.fromkeys(name for trial in results.trials for name in trial.params if name.startswith("inference."))
    names = [name for name in names if name == CFG or name not in results.space]
    values = {name: {trial.params.get(name) for trial in results.ranked()} for name in names}
    return sorted((name for name in names if name == CFG or len(values[name]) > 1), key=lambda name: name != CFG)


def applies(results: StudyResults, trial: TrialResult, name: str) -> bool:
    """Whether a parameter affects the trial: its condition holds, and λ1 > 0 for settings of the λ1 term."""
    if name not in trial.params or (name in OF_LAMBDA_1 and not _value(results, trial, LAMBDA_1)):
        return False
    when = results.space.get(name, {}).get("when") or {}
    return all(
        _value(results, trial, other) in (wanted if isinstance(wanted, list | tuple) else [wanted])
        for other, wanted in when.items()
    )


def _value(results: StudyResults, trial: TrialResult, name: str) -> Any:
    section, _, key = name.partition(".")
    return trial.params.get(name, results.config.get(section, {}).get(key))


def format_value(value: Any, digits: int = 4) -> str:
    """A value with four significant digits; a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}g}"


def format_duration(seconds: float | None) -> str:
    """Seconds in the two largest units, such as `1 h 12 min`; a dash for None."""
    if seconds is None:
        return "–"
    rest, parts = round(seconds), []
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, rest = divmod(rest, length)
        if count or parts or unit == "s":
            parts.append(f"{count} {unit}" if count or not parts else "")
    return " ".join(part for part in parts[:2] if part)


def within_noise(results: StudyResults, trial: TrialResult) -> bool:
    """Whether the trial's score differs from the baseline's by less than the noise of one seed, where that is known."""
    baseline, noise = results.baseline, results.noise
    if noise is None or None in (trial.value, baseline and baseline.value) or trial is baseline:
        return False
    return is_within_noise(trial.value - baseline.value, math.sqrt(noise["replicate"]["value"]))


def outcome(trial: TrialResult) -> str:
    """The outcome of a trial in a word or two."""
    if trial.state == "COMPLETE":
        return "complete"
    return (trial.outcome or {"FAIL": "failed"}.get(trial.state, trial.state.lower())).replace("_", " ")


def outcomes(results: StudyResults) -> str:
    """`20 complete, 3 diverged, 1 running`."""
    counted = Counter(outcome(trial) for trial in results.trials)
    return ", ".join(f"{count} {name}" for name, count in counted.most_common())


def score_names(results: StudyResults) -> list[str]:
    """Scores of any trial other than the study metrics."""
    names = dict.fromkeys(name for trial in results.trials for name in trial.scores)
    return [name for name in names if name not in metric_directions(results)]


def against_baseline(results: StudyResults) -> str | None:
    """The best trial compared with the baseline; None if the baseline has no score or is the best."""
    best, baseline = results.best, results.baseline
    if best is None or baseline is None or baseline.value is None or best is baseline:
        return None
    change = f" ({best.value / baseline.value - 1:+.1%})" if baseline.value else ""
    value, reference = format_value(best.value), format_value(baseline.value)
    return f"{short(results.metric)} {value} against {reference} for the baseline{change}"


def describe_state(results: StudyResults) -> str:
    """Outcomes of the trials, the best one, and its verdict, in a sentence or two."""
    best = results.best
    if best is None:
        return f"{outcomes(results)}; no trial has a score."
    verdict = results.verdict(best)
    word = verdict["verdict"] if verdict else "unconfirmed"
    value = against_baseline(results) or f"{short(results.metric)} {format_value(best.value)}"
    return f"{outcomes(results)}. Best: trial {best.number}, {value}; verdict: {word}."


def sorted_verdicts(results: StudyResults) -> list[dict[str, Any]]:
    """The verdicts, the largest improvement over the baseline first."""
    sign = 1 if results.direction == "minimize" else -1
    return sorted(results.verdicts.values(), key=lambda one: sign * one["difference"])


def is_searched_per_checkpoint(results: StudyResults) -> bool:
    """Whether each trial selects its own CFG scale."""
    return results.config.get("inference", {}).get("search") == "per_checkpoint"


def direction_text(name: str) -> str:
    """`lower is better` or `higher is better`."""
    entry = metric(name)
    if entry.direction == "target":
        return "the value of the data is best" if entry.target is None else f"{entry.target:g} is best"
    return "lower is better" if entry.direction == "minimize" else "higher is better"
