"""What a study found, read back from its one truth, the Optuna storage."""

from __future__ import annotations

from typing import Any

from uvar_tune.config import Config
from uvar_tune.study.files import StudyFiles
from uvar_tune.study.results import StudyResults, TrialResult
from uvar_tune.study.search import Search
from uvar_tune.tracking.registry import metric


def load_results(config: Config, files: StudyFiles, search: Search | None = None) -> StudyResults:
    """All trials of the study, finished or not."""
    search = search or Search(config, files.storage_url(config))
    begun = [trial for trial in search.study.get_trials(deepcopy=False) if "values" in trial.user_attrs]
    protocols = [trial.user_attrs["protocol"] for trial in begun if "protocol" in trial.user_attrs]
    return StudyResults(
        name=files.name, objective=config.study.objective, direction=metric(config.study.objective).direction,
        trials=tuple(_trial(config, files, trial) for trial in begun),
        space={name: entry.model_dump(mode="json") for name, entry in config.space.items()},
        protocol=protocols[0] if protocols else {}, seed=config.study.seed, root=files.directory,
        config=config.tree(exclude=("space",)))


def _trial(config: Config, files: StudyFiles, trial) -> TrialResult:
    attributes: dict[str, Any] = trial.user_attrs
    values = {**{name: config.get(name) for name in config.space}, **attributes["values"], **attributes.get("params", {})}
    return TrialResult(
        number=trial.number, kind=attributes["kind"], state=trial.state.name, outcome=attributes.get("outcome"),
        params=values, value=trial.values[0] if trial.state.name == "COMPLETE" else None, scores=attributes.get("scores", {}),
        profile=attributes.get("profile", []), attempts=len(attributes["attempts"]), seconds=attributes.get("seconds"),
        cpu_sec=attributes.get("cpu_sec", {}), directory=files.trial(trial.number), seeds=attributes["seeds"],
        made_by=attributes.get("made_by", {}), ran=attributes.get("ran", {}))
