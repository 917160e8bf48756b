"""What is confirmed on fresh paired seeds, and the verdicts: the best of a search is a candidate until then.

Arms: the baseline (CE), the best trials of the search, the 2×2 around the best one (+2nd alone, +SE alone; both is the trial
itself) and label smoothing as a rival. Each network is scored at its own best CFG scale and temperature, because at one fixed
point sharpness passes for quality.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uvar_tune.analysis.noise import MIN_PAIRS, Noise, variance_components
from uvar_tune.analysis.results import StudyResults, TrialResult
from uvar_tune.analysis.verdict import Arm, Verdict, judge
from uvar_tune.config.schema import Config
from uvar_tune.config.space import baseline_point
from uvar_tune.errors import ConfigError
from uvar_tune.metrics import metric
from uvar_tune.search.protocol import require_same_protocol
from uvar_tune.search.replicates import Cell

BASELINE, SECOND_ALONE, SEMANTIC_ALONE, SMOOTHING = "baseline", "2nd alone", "SE alone", "label smoothing"
_LAMBDA_1, _LAMBDA_2 = "loss.lambda_1", "loss.lambda_2"


def check_replicates(config: Config) -> None:
    """ConfigError where there would be too few pairs for a verdict."""
    if config.study.confirm_replicates < MIN_PAIRS:
        raise ConfigError(
            f"{config.study.confirm_replicates} replicates: a verdict needs at least {MIN_PAIRS} pairs",
            where="study.confirm_replicates",
            nearest=str(MIN_PAIRS),
        )


def arm_of(trial: TrialResult) -> str:
    """The arm's name of a trial of the search."""
    return f"trial {trial.number}"


def trained_values(config: Config, trial: TrialResult) -> dict[str, Any]:
    """What the trial trained with: its searched values without inference, its λ as they ran."""
    chosen = {name: value for name, value in trial.params.items() if not name.startswith("inference.")}
    if trial.ran:
        chosen |= {**trial.ran, "loss.lambda_unit": "raw"}
    return chosen


def confirm_arms(config: Config, results: StudyResults, tuned_baseline: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Arm → values by dotted name.

    Args:
        tuned_baseline: nuisance parameters of the baseline, tuned with a budget of their own; {} where none are searched.

    Raises:
        ConfigError: no trial of the search has a score yet.
    """
    found = [trial for trial in results.ranked() if trial.kind != BASELINE][: config.study.confirm_top]
    if not found:
        raise ConfigError(f"study {results.name!r} has no finished trial to confirm yet", where="--phase confirm")
    raw = {"loss.lambda_unit": "raw"} if config.loss.lambda_unit == "share" else {}
    plain = {
        **{name: value for name, value in baseline_point(config).items() if not name.startswith("inference.")},
        **tuned_baseline,
        **raw,
    }
    arms = {BASELINE: plain, SMOOTHING: {**plain, "loss.first_order": "label_smoothing"}}
    arms |= {arm_of(trial): trained_values(config, trial) for trial in found}
    best = trained_values(config, found[0])
    if all(
        best.get(name, config.get(name)) > 0 for name in (_LAMBDA_1, _LAMBDA_2)
    ):  # else it is one of the two already
        arms[SECOND_ALONE], arms[SEMANTIC_ALONE] = {**best, _LAMBDA_2: 0.0}, {**best, _LAMBDA_1: 0.0}
    return arms


def verdicts(config: Config, cells: list[Cell], results: StudyResults) -> tuple[list[Verdict], dict[str, str]]:
    """(the verdict on each arm against the baseline, arm → why there is none).

    Judged are the replicates that every arm has finished. An arm that lost one for a reason of its own (it diverged) is
    left out and named: dropping the replicate would flatter it.

    Raises:
        ConfigError: the baseline has no replicate that counts, or protocols differ.
    """
    scores: dict[str, dict[int, float]] = {}
    lost: dict[str, str] = {}
    for cell in cells:
        scores.setdefault(cell.arm, {})
        if cell.value is not None:
            scores[cell.arm][cell.replicate] = cell.value
        elif cell.state in ("PRUNED", "FAIL"):
            lost[cell.arm] = f"replicate {cell.replicate}: {cell.details.get('outcome', cell.state.lower())}"
    judged = {arm: values for arm, values in scores.items() if arm not in lost}
    common = set.intersection(*map(set, judged.values())) if judged else set()
    if BASELINE not in judged or not common:
        raise ConfigError(
            f"the baseline has no replicate to compare with ({lost.get(BASELINE, 'none has finished')})",
            where="--phase confirm",
        )
    searched = {arm_of(trial): trial.value for trial in results.trials}
    protocol = _protocol(cells, judged)
    arms = [
        Arm(arm, {replicate: values[replicate] for replicate in sorted(common)}, protocol, searched.get(arm))
        for arm, values in judged.items()
    ]
    baseline = next(arm for arm in arms if arm.name == BASELINE)
    others = [arm for arm in arms if arm.name != BASELINE]
    return judge(baseline, others, direction=metric(config.study.metric).direction) if others else [], lost


def _protocol(cells: list[Cell], judged: Mapping[str, Any]) -> dict[str, Any]:
    """The one protocol of all replicates of these arms; ConfigError naming the one that has another than the first."""
    told = [cell for cell in cells if cell.value is not None and cell.arm in judged]
    known = told[0].details.get("protocol", {})
    for cell in told:
        require_same_protocol(
            cell.details.get("protocol", {}),
            known,
            where=f"arm {cell.arm!r}, replicate {cell.replicate}",
            of=f"replicate {told[0].replicate} of {told[0].arm!r}",
        )
    return known


def noise_of(cells: list[Cell], objective: str, samplings: int) -> Noise | None:
    """Variance components of the baseline from its replicates × sampling seeds; None while there are fewer than 2 × 2."""
    rows = [
        [cell.details["scores"][objective], *cell.details.get("again", [])] for cell in cells if cell.value is not None
    ]
    whole = [row for row in rows if len(row) == samplings]
    return variance_components(whole) if len(whole) >= 2 and samplings >= 2 else None
