"""The phase `confirm`: which configurations are compared under fresh paired seeds, and the verdicts.

The best trial of a search is only a candidate: its score is selected among many. The arms are the baseline
(cross-entropy), the best trials, the 2×2 design around the best one (each term alone; both together are the trial
itself) and label smoothing as a competitor. A trial that differs from the baseline in another scientific parameter
(the depth, say) is compared with a control of its own: cross-entropy at that value. Every network is scored at its own
best CFG scale and temperature, because a comparison at one fixed point mistakes sharper predictions for better ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from uvar_tune.analysis.noise import MIN_PAIRS, Noise, variance_components
from uvar_tune.analysis.results import BASELINE, Replicate, StudyResults, TrialResult, require_same_protocol
from uvar_tune.analysis.sequential import SequentialDesign
from uvar_tune.analysis.verdict import Arm, Verdict, compare_with_baseline
from uvar_tune.config.schema import Config
from uvar_tune.config.space import baseline_point
from uvar_tune.errors import ConfigError
from uvar_tune.metrics import metric

SECOND_ALONE, SEMANTIC_ALONE, SMOOTHING = "2nd alone", "SE alone", "label smoothing"
_LAMBDA_1, _LAMBDA_2 = "loss.lambda_1", "loss.lambda_2"
_CONTROL = "cross-entropy, "  # begins the name of a control
_FIRST_ORDER = ("loss.first_order", "loss.epsilon", "loss.alpha")  # settings of the loss that no λ weights


def check_replicates(config: Config) -> None:
    """Raise ConfigError if `study.confirm_replicates` are too few pairs for a verdict."""
    if config.study.confirm_replicates < MIN_PAIRS:
        raise ConfigError(
            f"{config.study.confirm_replicates} replicates: a verdict needs at least {MIN_PAIRS} pairs",
            where="study.confirm_replicates",
            nearest=str(MIN_PAIRS),
        )


def arm_of(trial: TrialResult) -> str:
    """The name of a trial's arm."""
    return f"trial {trial.number}"


def trained_values(config: Config, trial: TrialResult) -> dict[str, Any]:
    """The values that the trial trained with: without inference parameters, with its effective λ."""
    values = {name: value for name, value in trial.params.items() if not name.startswith("inference.")}
    if trial.effective_parameters:
        values |= {**trial.effective_parameters, "loss.lambda_unit": "raw"}
    return values


def confirm_arms(config: Config, results: StudyResults, tuned_baseline: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The arms of the phase `confirm`.

    Args:
        config: of the study.
        results: of its search.
        tuned_baseline: the baseline's nuisance parameters, tuned with a budget of their own; {} if none are searched.

    Returns:
        Arm → values by dotted name.

    Raises:
        ConfigError: no trial of the search has a score yet.
    """
    candidates = [trial for trial in results.ranked() if trial.kind != BASELINE][: config.study.confirm_top]
    if not candidates:
        raise ConfigError(f"study {results.name!r} has no finished trial to confirm yet", where="--phase confirm")
    raw = {"loss.lambda_unit": "raw"} if config.loss.lambda_unit == "share" else {}
    plain = {
        **{name: value for name, value in baseline_point(config).items() if not name.startswith("inference.")},
        **tuned_baseline,
        **raw,
    }
    arms = {BASELINE: plain, SMOOTHING: {**plain, "loss.first_order": "label_smoothing"}}
    trained = {arm_of(trial): trained_values(config, trial) for trial in candidates}
    for values in trained.values():
        if other := _other_settings(config, values, plain):
            arms[_control_name(other)] = {**plain, **other}
    arms |= trained
    best = trained_values(config, candidates[0])
    if all(best.get(name, config.get(name)) > 0 for name in (_LAMBDA_1, _LAMBDA_2)):  # else it has one term only
        arms[SECOND_ALONE], arms[SEMANTIC_ALONE] = {**best, _LAMBDA_2: 0.0}, {**best, _LAMBDA_1: 0.0}
    return arms


def _other_settings(config: Config, values: Mapping[str, Any], plain: Mapping[str, Any]) -> dict[str, Any]:
    """The scientific settings in which an arm differs from the baseline, except λ and what λ weights."""
    return {
        name: values[name]
        for name, entry in config.space.items()
        if entry.role == "scientific"
        and (not name.startswith("loss.") or name in _FIRST_ORDER)
        and name in values
        and values[name] != plain.get(name, config.get(name))
    }


def _control_name(other: Mapping[str, Any]) -> str:
    return _CONTROL + ", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in other.items())


def control_arms(config: Config, arms: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The arm that each arm is compared with: the baseline, or a control that shares its other scientific settings.

    Args:
        config: of the study.
        arms: arm → values, the baseline among them.

    Returns:
        Arm → its control. The baseline and the controls themselves, which are not tested, are left out.
    """
    plain = arms.get(BASELINE, {})
    controls = {}
    for arm, values in arms.items():
        if arm != BASELINE and not arm.startswith(_CONTROL):
            name = _control_name(_other_settings(config, values, plain))
            controls[arm] = name if name in arms and arm != SMOOTHING else BASELINE
    return controls


def verdicts(
    config: Config,
    replicates: Sequence[Replicate],
    search_values: Mapping[str, float | None],
    design: SequentialDesign,
) -> tuple[list[Verdict], dict[str, str]]:
    """Test every arm against the baseline or its control.

    Of each arm the first replicates count that it and its control have finished without a gap. An arm that lost a
    replicate for a reason of its own (it diverged) is not tested: without that replicate its mean would be biased in
    its favour.

    Args:
        config: of the study.
        replicates: of the phase `confirm`.
        search_values: arm → its score in the search, if it has one.
        design: of the sequential test.

    Returns:
        (one verdict for each tested arm, arm → why it has none).

    Raises:
        ConfigError: the baseline has no replicate that counts, or protocols differ.
    """
    scores: dict[str, dict[int, float]] = {}
    for replicate in replicates:
        scores.setdefault(replicate.arm, {})
        if replicate.value is not None:
            scores[replicate.arm][replicate.index] = replicate.value
    untested = _lost_arms(replicates)
    tested = {arm: values for arm, values in scores.items() if arm not in untested}
    controls = control_arms(config, {replicate.arm: replicate.attributes["values"] for replicate in replicates})
    for arm, control in controls.items():
        if control in untested and control != BASELINE and arm not in untested:
            untested[arm] = f"its control, {control}, has no scores ({untested[control]})"
            tested.pop(arm, None)
    pairs = {arm: _finished_in_order(values, tested.get(controls.get(arm, arm), {})) for arm, values in tested.items()}
    if not pairs.get(BASELINE):
        raise ConfigError(
            f"the baseline has no replicate to compare with ({untested.get(BASELINE, 'none has finished')})",
            where="--phase confirm",
        )
    untested |= {arm: "no pair is complete yet" for arm, count in pairs.items() if not count}
    protocol = _common_protocol(replicates, tested)
    arms = [
        Arm(arm, {index: tested[arm][index] for index in range(count)}, protocol, search_values.get(arm))
        for arm, count in pairs.items()
        if count
    ]
    by_name = {arm.name: arm for arm in arms}
    candidates = [arm for arm in arms if arm.name in controls]
    if not candidates:
        return [], untested
    own = {arm: by_name[control] for arm, control in controls.items() if control in by_name}
    direction = metric(config.study.metric).direction
    decided = compare_with_baseline(by_name[BASELINE], candidates, direction=direction, design=design, controls=own)
    return decided, untested


def stopped_arms(config: Config, replicates: Sequence[Replicate], design: SequentialDesign) -> set[str]:
    """The arms that need no further replicates: decided, futile, or without a verdict for a reason of their own."""
    try:
        tested, _ = verdicts(config, replicates, {}, design)
    except ConfigError:  # no pair is complete yet
        tested = []
    return {verdict.arm for verdict in tested if verdict.stopped} | set(_lost_arms(replicates))


def _lost_arms(replicates: Sequence[Replicate]) -> dict[str, str]:
    """Arm → why one of its replicates has no score, for arms that lost one."""
    return {
        replicate.arm: f"replicate {replicate.index}: {replicate.attributes.get('outcome', replicate.state.lower())}"
        for replicate in replicates
        if replicate.value is None and replicate.state in ("PRUNED", "FAIL")
    }


def search_values(results: StudyResults) -> dict[str, float | None]:
    """Arm → the score of its trial in the search."""
    return {arm_of(trial): trial.value for trial in results.trials}


def _finished_in_order(values: Mapping[int, float], baseline: Mapping[int, float]) -> int:
    """How many replicates, counted from 0 without a gap, both an arm and the baseline have finished."""
    return next(index for index in itertools.count() if index not in values or index not in baseline)


def _common_protocol(replicates: Sequence[Replicate], tested: Mapping[str, Any]) -> dict[str, Any]:
    """The protocol of all replicates of these arms; ConfigError names the first replicate with another one."""
    scored = [replicate for replicate in replicates if replicate.value is not None and replicate.arm in tested]
    protocol = scored[0].attributes.get("protocol", {})
    for replicate in scored:
        require_same_protocol(
            replicate.attributes.get("protocol", {}),
            protocol,
            where=f"arm {replicate.arm!r}, replicate {replicate.index}",
            of=f"replicate {scored[0].index} of {scored[0].arm!r}",
        )
    return protocol


def baseline_noise(replicates: Sequence[Replicate], metric_name: str, samplings: int) -> Noise | None:
    """Variance components of the baseline from its replicates × sampling seeds.

    Args:
        replicates: of the phase `noise`.
        metric_name: of the study.
        samplings: number of sampling seeds.

    Returns:
        None with fewer than 2 complete replicates or 2 sampling seeds.
    """
    rows = [
        [replicate.attributes["scores"][metric_name], *replicate.attributes.get("repeated_values", [])]
        for replicate in replicates
        if replicate.value is not None
    ]
    complete = [row for row in rows if len(row) == samplings]
    return variance_components(complete) if len(complete) >= 2 and samplings >= 2 else None
