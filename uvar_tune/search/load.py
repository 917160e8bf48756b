"""What a study found, read back from its one truth, the Optuna storage."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Iterable
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from uvar_tune.analysis.confirmation import BASELINE, SECOND_ALONE, SEMANTIC_ALONE, noise_of, verdicts
from uvar_tune.analysis.results import StudyResults, TrialResult
from uvar_tune.config.schema import Config
from uvar_tune.errors import ConfigError
from uvar_tune.search.budget import spent
from uvar_tune.search.importance import importances
from uvar_tune.search.objectives import directions, pareto_front
from uvar_tune.search.ownership import require_existing_study
from uvar_tune.search.protocol import require_same_protocol
from uvar_tune.search.pruning import rung_correlation, rung_values
from uvar_tune.search.replicates import Cell, cells_of
from uvar_tune.search.study import Search
from uvar_tune.study_dir import StudyDirectory

_LAMBDA_2 = "loss.lambda_2"


def load_results(config: Config, files: StudyDirectory, search: Search | None = None) -> StudyResults:
    """All trials of the study, finished or not, with what the phases `noise` and `confirm` say.

    Raises:
        ConfigError: the protocol changed midway; the study has not begun; its storage is not the one that holds it.
    """
    if search is None and not require_existing_study(files.storage_url(config), files.name, files.directory):
        raise ConfigError(f"study {files.name!r} has not begun", where="--study")
    search = search or Search(config, files.storage_url(config))
    begun = [trial for trial in search.study.get_trials(deepcopy=False) if "values" in trial.user_attrs]
    protocols = {trial.number: trial.user_attrs["protocol"] for trial in begun if "protocol" in trial.user_attrs}
    first = next(iter(protocols), None)
    for number, protocol in protocols.items():
        require_same_protocol(
            protocol, protocols[first], where=f"study {files.name!r}, trial {number}", of=f"trial {first}"
        )
    ways, rungs = dict(zip(config.study.metrics, directions(config), strict=True)), rung_values(begun)
    trials = tuple(_trial(config, files, trial, rungs.get(trial.number, {})) for trial in begun)
    final = {trial.number: trial.objectives[config.study.rung_metric] for trial in trials if trial.objectives}
    results = StudyResults(
        name=files.name,
        objective=config.study.metric,
        direction=ways[config.study.metric],
        trials=trials,
        space={name: entry.model_dump(mode="json") for name, entry in config.space.items()},
        protocol=protocols.get(first, {}),
        seed=config.study.seed,
        root=files.directory,
        config=config.tree(exclude=("space",)),
        further={name: ways[name] for name in config.study.further_metrics},
        rung_correlation=tuple(rung_correlation(rungs, final)),
        idle_sec=_idle_sec(begun),
        importances=importances(begun, ways[config.study.metric]),
    )
    return dataclasses.replace(results, pareto=_front(results, ways), **_phases(config, search.storage, results))


def _front(results: StudyResults, ways: dict[str, str]) -> tuple[int, ...]:
    if len(ways) < 2:
        return ()
    feasible = [trial for trial in results.ranked() if trial.feasible]
    points = [[trial.objectives[name] for name in ways] for trial in feasible]
    return tuple(feasible[index].number for index in pareto_front(points, list(ways.values())))


def _phases(config: Config, storage, results: StudyResults) -> dict[str, Any]:
    found: dict[str, Any] = {}
    noise = noise_of(cells_of(storage, results.name, "noise"), config.study.metric, config.study.noise_samplings)
    if noise is not None:
        found["noise"] = noise.as_dict()
    cells = cells_of(storage, results.name, "confirm")
    if any(cell.arm == BASELINE and cell.value is not None for cell in cells):
        found |= {"confirmed": _confirmed(cells), "factorial": _factorial(cells)}
        try:
            judged, found["unjudged"] = verdicts(config, cells, results)
            found["verdicts"] = {one.arm: one.as_dict() for one in judged}
        except ConfigError as error:  # the phase is under way, or its arms cannot be compared
            found["unjudged"] = {
                arm: str(error) for arm in dict.fromkeys(cell.arm for cell in cells) if arm != BASELINE
            }
    return found


def _confirmed(cells: list[Cell]) -> dict[str, dict[str, Any]]:
    arms: dict[str, dict[str, Any]] = {}
    for arm in dict.fromkeys(cell.arm for cell in cells):
        scored = sorted(
            (cell for cell in cells if cell.arm == arm and cell.value is not None), key=lambda cell: cell.replicate
        )
        if not scored:
            continue
        chosen = [cell.details.get("params", {}) for cell in scored]
        names = dict.fromkeys(name for params in chosen for name in params if name.startswith("inference."))
        arms[arm] = {
            "values": {cell.replicate: cell.value for cell in scored},
            "mean": statistics.fmean(cell.value for cell in scored),
            "points": {name: statistics.median(params[name] for params in chosen if name in params) for name in names},
        }
    return arms


def _factorial(cells: list[Cell]) -> dict[str, str]:
    """Cell of the 2×2 → arm. Both terms together are the trial from which the arms of one term were made."""
    values = {cell.arm: cell.details["values"] for cell in cells}
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
    return {"none": BASELINE, "second": SECOND_ALONE, "semantic": SEMANTIC_ALONE, "both": both} if both else {}


def _trial(config: Config, files: StudyDirectory, trial: FrozenTrial, rungs: dict[int, float]) -> TrialResult:
    attributes: dict[str, Any] = trial.user_attrs
    values = {
        **{name: config.get(name) for name in config.space},
        **attributes["values"],
        **attributes.get("params", {}),
    }
    told = trial.values if trial.state == TrialState.COMPLETE else None
    return TrialResult(
        number=trial.number,
        kind=attributes["kind"],
        state=trial.state.name,
        outcome=attributes.get("outcome"),
        params=values,
        value=told[0] if told else None,
        scores=attributes.get("scores", {}),
        profile=attributes.get("profile", []),
        attempts=len(attributes["attempts"]),
        seconds=attributes.get("seconds"),
        cpu_sec=attributes.get("cpu_sec", {}),
        directory=files.trial(trial.number),
        seeds=attributes["seeds"],
        made_by=attributes.get("made_by", {}),
        ran=attributes.get("ran", {}),
        rungs=rungs,
        objectives=dict(zip(config.study.metrics, told, strict=True)) if told else {},
        violations=dict(trial.constraints),
        wall_sec=_wall_sec(attributes),
    )


def _spans(attributes: dict[str, Any]) -> list[tuple[float, float]]:
    return [(attempt["started"], attempt["ended"]) for attempt in attributes["attempts"] if "ended" in attempt]


def _wall_sec(attributes: dict[str, Any]) -> dict[str, float]:
    lasted = [end - start for start, end in _spans(attributes)]
    if not lasted:
        return {}
    start_up = min(attributes.get("start_up_seconds", 0.0), lasted[-1])
    return {"start-up": start_up, "work": lasted[-1] - start_up, "earlier": sum(lasted[:-1])}


def _idle_sec(trials: Iterable[FrozenTrial]) -> float:
    """Places (as many as trials were ever at work at once) × time that any was at work, less the work of all."""
    spans = [span for trial in trials for span in _spans(trial.user_attrs)]
    steps = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    places = max(itertools.accumulate(step for _, step in steps), default=0)
    cost = spent(spans, gpus=1.0)
    return max(0.0, 3600 * (places * cost.wall_hours - cost.gpu_hours))
