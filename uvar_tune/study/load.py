"""What a study found, read back from its one truth, the Optuna storage."""

from __future__ import annotations

import dataclasses
from typing import Any

from uvar_tune.config import Config
from uvar_tune.study.confirm import BASELINE, noise_of, verdicts
from uvar_tune.study.files import StudyFiles
from uvar_tune.study.replicates import cells_of
from uvar_tune.study.results import StudyResults, TrialResult
from uvar_tune.study.search import Search
from uvar_tune.tracking.registry import metric


def load_results(config: Config, files: StudyFiles, search: Search | None = None) -> StudyResults:
    """All trials of the study, finished or not, with what the phases `noise` and `confirm` say."""
    search = search or Search(config, files.storage_url(config))
    begun = [trial for trial in search.study.get_trials(deepcopy=False) if "values" in trial.user_attrs]
    protocols = [trial.user_attrs["protocol"] for trial in begun if "protocol" in trial.user_attrs]
    results = StudyResults(
        name=files.name, objective=config.study.objective, direction=metric(config.study.objective).direction,
        trials=tuple(_trial(config, files, trial) for trial in begun),
        space={name: entry.model_dump(mode="json") for name, entry in config.space.items()},
        protocol=protocols[0] if protocols else {}, seed=config.study.seed, root=files.directory,
        config=config.tree(exclude=("space",)))
    return dataclasses.replace(results, **_phases(config, search.storage, results))


def _phases(config: Config, storage, results: StudyResults) -> dict[str, Any]:
    found: dict[str, Any] = {}
    noise = noise_of(cells_of(storage, results.name, "noise"), config.study.objective, config.study.noise_samplings)
    if noise is not None:
        found["noise"] = noise.as_dict()
    cells = cells_of(storage, results.name, "confirm")
    if any(cell.arm == BASELINE and cell.value is not None for cell in cells):
        judged, lost = verdicts(config, cells, results)
        found["verdicts"] = {one.arm: one.as_dict() for one in judged}
        found["unjudged"] = lost
    return found


def _trial(config: Config, files: StudyFiles, trial) -> TrialResult:
    attributes: dict[str, Any] = trial.user_attrs
    values = {**{name: config.get(name) for name in config.space}, **attributes["values"], **attributes.get("params", {})}
    return TrialResult(
        number=trial.number, kind=attributes["kind"], state=trial.state.name, outcome=attributes.get("outcome"),
        params=values, value=trial.values[0] if trial.state.name == "COMPLETE" else None, scores=attributes.get("scores", {}),
        profile=attributes.get("profile", []), attempts=len(attributes["attempts"]), seconds=attributes.get("seconds"),
        cpu_sec=attributes.get("cpu_sec", {}), directory=files.trial(trial.number), seeds=attributes["seeds"],
        made_by=attributes.get("made_by", {}), ran=attributes.get("ran", {}))
