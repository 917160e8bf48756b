"""The results of a study, read from the Optuna storage."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from uvar_tune.analysis.confirmation import (
    SECOND_ALONE,
    SEMANTIC_ALONE,
    baseline_noise,
    control_arms,
    search_values,
    verdicts,
)
from uvar_tune.analysis.results import BASELINE, Replicate, StudyResults, TrialResult, require_same_protocol
from uvar_tune.config.schema import Config
from uvar_tune.errors import ConfigError
from uvar_tune.search import _optuna_compat as compat
from uvar_tune.search.budget import spent
from uvar_tune.search.importance import importances
from uvar_tune.search.objectives import directions, pareto_front
from uvar_tune.search.pruning import rung_correlation, rung_values
from uvar_tune.search.replicates import confirmation_design, load_replicates
from uvar_tune.search.storage import require_existing_study, study_trials
from uvar_tune.search.study import Search
from uvar_tune.study_dir import StudyDirectory

_LAMBDA_2 = "loss.lambda_2"


def load_results(config: Config, files: StudyDirectory, search: Search | None = None) -> StudyResults:
    """All trials of the study, finished or not, and the results of the phases `noise` and `confirm`.

    Parameter importances are computed when `StudyResults.importances` is first read.

    Args:
        config: of the study.
        files: its directory.
        search: the open search of a running study; without it the storage is opened.

    Raises:
        ConfigError: trials have different protocols; the study does not exist; it belongs to another storage.
    """
    if search is None and not require_existing_study(files.storage_url(config), files.name, files.directory):
        raise ConfigError(f"study {files.name!r} has no trial yet", where="--study")
    search = search or Search(config, files.storage_url(config))
    proposed = [trial for trial in search.study.get_trials(deepcopy=False) if "values" in trial.user_attrs]
    protocol = _common_protocol(proposed, files.name)
    direction_of, rungs = dict(zip(config.study.metrics, directions(config), strict=True)), rung_values(proposed)
    trials = tuple(_trial_result(config, files, trial, rungs.get(trial.number, {})) for trial in proposed)
    final = {trial.number: trial.metric_values[config.study.pruning_metric] for trial in trials if trial.metric_values}
    results = StudyResults(
        name=files.name,
        metric=config.study.metric,
        direction=direction_of[config.study.metric],
        trials=trials,
        space={name: entry.model_dump(mode="json") for name, entry in config.space.items()},
        protocol=protocol,
        seed=config.study.seed,
        directory=files.directory,
        config=config.tree(exclude=("space",)),
        further_metrics={name: direction_of[name] for name in config.study.further_metrics},
        rung_correlation=tuple(rung_correlation(rungs, final)),
        idle_sec=_idle_sec(proposed),
        compute_importances=functools.partial(importances, proposed, direction_of[config.study.metric]),
    )
    pareto = _pareto(results, direction_of)
    return dataclasses.replace(results, pareto=pareto, **_phase_results(config, search.storage, results))


def stored_protocol(storage, study: str) -> dict[str, Any]:
    """The protocol of the first trial of a search that has a score; {} if there is none yet."""
    trials = study_trials(storage, study)
    return next((dict(trial.user_attrs["protocol"]) for trial in trials if trial.user_attrs.get("protocol")), {})


def _common_protocol(trials: Iterable[FrozenTrial], study: str) -> dict[str, Any]:
    """The protocol of all trials, {} before the first score; ConfigError names the first trial with another one."""
    protocols = {trial.number: trial.user_attrs["protocol"] for trial in trials if "protocol" in trial.user_attrs}
    first = next(iter(protocols), None)
    for number, protocol in protocols.items():
        require_same_protocol(protocol, protocols[first], where=f"study {study!r}, trial {number}", of=f"trial {first}")
    return protocols.get(first, {})


def _pareto(results: StudyResults, direction_of: dict[str, str]) -> tuple[int, ...]:
    if len(direction_of) < 2:
        return ()
    feasible = [trial for trial in results.ranked() if trial.feasible]
    points = [[trial.metric_values[name] for name in direction_of] for trial in feasible]
    return tuple(feasible[index].number for index in pareto_front(points, list(direction_of.values())))


def _phase_results(config: Config, storage, results: StudyResults) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    replicates = load_replicates(storage, results.name, "noise")
    noise = baseline_noise(replicates, config.study.metric, config.study.noise_samplings)
    if noise is not None:
        fields["noise"] = noise.as_dict()
    replicates = load_replicates(storage, results.name, "confirm")
    if any(replicate.arm == BASELINE and replicate.value is not None for replicate in replicates):
        fields |= {"confirmed": _confirmed(replicates), "factorial": _factorial(config, replicates)}
        try:
            design = confirmation_design(storage, config)
            tested, fields["untested"] = verdicts(config, replicates, search_values(results), design)
            fields["verdicts"] = {verdict.arm: verdict.as_dict() for verdict in tested}
        except ConfigError as error:  # the phase is under way, or its arms cannot be compared
            arms = dict.fromkeys(replicate.arm for replicate in replicates)
            fields["untested"] = {arm: str(error) for arm in arms if arm != BASELINE}
    return fields


def _confirmed(replicates: Sequence[Replicate]) -> dict[str, dict[str, Any]]:
    arms: dict[str, dict[str, Any]] = {}
    for arm in dict.fromkeys(replicate.arm for replicate in replicates):
        scored = sorted(
            (replicate for replicate in replicates if replicate.arm == arm and replicate.value is not None),
            key=lambda replicate: replicate.index,
        )
        if not scored:
            continue
        selected = [replicate.attributes.get("inference_parameters", {}) for replicate in scored]
        names = dict.fromkeys(name for params in selected for name in params if name.startswith("inference."))
        arms[arm] = {
            "values": {replicate.index: replicate.value for replicate in scored},
            "mean": statistics.fmean(replicate.value for replicate in scored),
            "points": {
                name: statistics.median(params[name] for params in selected if name in params) for name in names
            },
            "at_bound": sorted({name for one in scored for name in one.attributes.get("inference_at_bound", [])}),
        }
    return arms


def _factorial(config: Config, replicates: Sequence[Replicate]) -> dict[str, str]:
    """Cell of the 2×2 design → arm; without terms it is the baseline or the control of the other three.

    Both terms together are the trial from which the one-term arms were derived.
    """
    values = {replicate.arm: replicate.attributes["values"] for replicate in replicates}
    if SECOND_ALONE not in values or SEMANTIC_ALONE not in values:
        return {}
    both = next(
        (
            arm
            for arm, own in values.items()
            if arm not in (SECOND_ALONE, SEMANTIC_ALONE, BASELINE) and {**own, _LAMBDA_2: 0.0} == values[SECOND_ALONE]
        ),
        None,
    )
    if both is None:
        return {}
    none = control_arms(config, values)[both]
    return {"none": none, "second": SECOND_ALONE, "semantic": SEMANTIC_ALONE, "both": both}


def _trial_result(config: Config, files: StudyDirectory, trial: FrozenTrial, rungs: dict[int, float]) -> TrialResult:
    attributes: dict[str, Any] = trial.user_attrs
    values = trial.values if trial.state == TrialState.COMPLETE else None
    return TrialResult(
        number=trial.number,
        kind=attributes["kind"],
        state=trial.state.name,
        outcome=attributes.get("outcome") or ("complete" if trial.state == TrialState.COMPLETE else None),
        params={
            **{name: config.get(name) for name in config.space},
            **attributes["values"],
            **attributes.get("inference_parameters", {}),
        },
        value=values[0] if values else None,
        scores=attributes.get("scores", {}),
        inference_points=attributes.get("inference_points", []),
        attempts=len(attributes["attempts"]),
        seconds=attributes.get("seconds"),
        cpu_sec=attributes.get("cpu_sec", {}),
        directory=files.trial(trial.number),
        seeds=attributes["seeds"],
        provenance=attributes.get("provenance", {}),
        effective_parameters=attributes.get("effective_parameters", {}),
        rungs=rungs,
        metric_values=dict(zip(config.study.metrics, values, strict=True)) if values else {},
        violations=compat.named_constraints(trial),
        wall_sec=_wall_sec(attributes),
        inference_at_bound=attributes.get("inference_at_bound", []),
    )


def _spans(attributes: dict[str, Any]) -> list[tuple[float, float]]:
    return [(attempt["started"], attempt["ended"]) for attempt in attributes["attempts"] if "ended" in attempt]


def _wall_sec(attributes: dict[str, Any]) -> dict[str, float]:
    durations = [end - start for start, end in _spans(attributes)]
    if not durations:
        return {}
    start_up = min(attributes.get("start_up_seconds", 0.0), durations[-1])
    return {"start-up": start_up, "work": durations[-1] - start_up, "earlier": sum(durations[:-1])}


def _idle_sec(trials: Iterable[FrozenTrial]) -> float:
    """Places (as many as trials ever ran at once) × time that any trial ran, less the time of all trials."""
    spans = [span for trial in trials for span in _spans(trial.user_attrs)]
    changes = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    places = max(itertools.accumulate(change for _, change in changes), default=0)
    cost = spent(spans, gpus=1.0)
    return max(0.0, 3600 * (places * cost.wall_hours - cost.gpu_hours))
