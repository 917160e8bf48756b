"""Warm start: the completed trials of another study as prior information for the sampler.

They are copied once, at the first proposal, into the Optuna study `NAME/warm_start`. So proposals do not change if the
other study goes on or disappears. They are never run, ranked or counted.
"""

from __future__ import annotations

import optuna
from optuna.trial import FrozenTrial, TrialState

from uvar_tune.config.schema import Config
from uvar_tune.config.space import searched_entries
from uvar_tune.errors import ConfigError, nearest
from uvar_tune.io.uri import redact_url
from uvar_tune.search.objectives import directions
from uvar_tune.search.samplers import prior_trials
from uvar_tune.search.storage import open_storage, open_study, study_exists, study_trials
from uvar_tune.study_dir import StudyDirectory, resolve_root

_WHERE = "study.warm_start"


def warm_start_trials(config: Config, storage: optuna.storages.BaseStorage) -> list[FrozenTrial]:
    """The stored copy of the trials of `study.warm_start`, made if it is missing; [] without that setting.

    Raises:
        ConfigError: as `source_trials`.
    """
    if config.study.warm_start is None:
        return []
    name, source = f"{config.study.name}/warm_start", {"source": redact_url(config.study.warm_start)}
    study = open_study(storage, name, directions(config), source)
    if not study.user_attrs.get("copied"):
        for trial in source_trials(config)[len(study.get_trials(deepcopy=False)) :]:
            study.add_trial(trial)
        study.set_user_attr("copied", True)
    return study_trials(storage, name)


def source_trials(config: Config) -> list[FrozenTrial]:
    """The completed trials of the study that `study.warm_start` names, its baseline excepted.

    Raises:
        ConfigError: there is no such study; it has other metrics or units; it searches parameters that this study does
            not; or none of its trials is in this study's space.
    """
    url, name = _locate(config)
    if not study_exists(url, name):
        raise ConfigError(f"{redact_url(url.removeprefix('journal:'))} has no study {name!r}", where=_WHERE)
    source = open_storage(url)
    stored = [way.name.lower() for way in source.get_study_directions(source.get_study_id_from_name(name))]
    if stored != directions(config):
        raise ConfigError(
            f"study {name!r} is to {', '.join(stored)} its metrics, this one is to "
            f"{', '.join(directions(config))} them",
            where=_WHERE,
        )
    space = searched_entries(config)
    completed = [trial for trial in study_trials(source, name) if trial.state == TrialState.COMPLETE and trial.params]
    for parameter in dict.fromkeys(name for trial in completed for name in trial.params):
        if parameter not in space:
            raise ConfigError(
                f"study {name!r} searches {parameter}, which this study does not",
                where=_WHERE,
                nearest=nearest(parameter, space),
            )
    if not prior_trials(completed, space):
        raise ConfigError(f"no completed trial of study {name!r} is in the space of this study", where=_WHERE)
    return completed


def _locate(config: Config) -> tuple[str, str]:
    """(storage URL, study name) of `study.warm_start`: a study below the same root, or URL#NAME."""
    source = config.study.warm_start
    if "://" in source or source.startswith("journal:"):
        url, separator, name = source.rpartition("#")
        if not separator or not name:
            raise ConfigError(f"{redact_url(source)!r} names no study: give URL#NAME", where=_WHERE)
        return url, name
    if source == config.study.name:
        raise ConfigError(f"{source!r} is this study", where=_WHERE)
    directory = StudyDirectory(resolve_root(config.run.root), source)
    other = directory.load_config()
    if other.study.metrics != config.study.metrics:
        raise ConfigError(
            f"study {source!r} has the metrics {', '.join(other.study.metrics)}, this one "
            f"{', '.join(config.study.metrics)}",
            where=_WHERE,
        )
    if other.loss.lambda_unit != config.loss.lambda_unit:
        raise ConfigError(
            f"study {source!r} has loss.lambda_unit {other.loss.lambda_unit!r}, this one {config.loss.lambda_unit!r}",
            where=_WHERE,
        )
    return directory.storage_url(other), source
