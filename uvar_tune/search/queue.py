"""Queued trials: configurations that somebody wants to be run next, in whole or in part.

They come from `study.queue` of a space file, from `queue_trial`, or from Optuna's own `Study.enqueue_trial` (also
through optuna-dashboard). They run before the sampler's proposals; parameters that they leave out are sampled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.trial import TrialState

from uvar_tune.config.schema import Config
from uvar_tune.config.space import fixed_values, searched_entries
from uvar_tune.config.space_entry import SpaceEntry
from uvar_tune.errors import ConfigError, nearest
from uvar_tune.search._optuna_compat import queued_parameters
from uvar_tune.search.objectives import directions
from uvar_tune.search.storage import open_storage, open_study, require_existing_study
from uvar_tune.study_dir import StudyDirectory


def check_queued(config: Config, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The parameters of a queued trial, with the types of the space.

    Args:
        config: of the study.
        values: dotted name → value; any subset of the searched parameters.
        where: names the trial in messages.

    Raises:
        ConfigError: an unknown parameter, a value outside its range, or a parameter whose condition these values do not
            meet.
    """
    entries = searched_entries(config)
    checked = {}
    for name, value in values.items():
        if name not in entries:
            raise ConfigError(f"{name!r} is not searched", where=where, nearest=nearest(name, entries))
        checked[name] = _checked_value(name, entries[name], value, where)
    for name in checked:
        for other, required in entries[name].when.items():
            options = required if isinstance(required, (list, tuple)) else [required]
            if other in entries and other not in checked:
                raise ConfigError(f"{name} exists only if {other} is {_listed(options)}: give {other} too", where=where)
            actual = checked.get(other, fixed_values(config).get(other, config.get(other)))
            if actual not in options:
                raise ConfigError(
                    f"{name} does not exist if {other} is {actual!r}", where=where, nearest=f"{other}={options[0]}"
                )
    return checked


def _checked_value(name: str, entry: SpaceEntry, value: Any, where: str) -> Any:
    if entry.holds(value):
        if entry.type == "categorical":
            return next(
                choice
                for choice in entry.choices
                if choice == value and isinstance(choice, bool) == isinstance(value, bool)
            )
        return int(value) if entry.type == "int" else float(value)
    if entry.type == "categorical":
        raise ConfigError(
            f"{name}: {value!r} is none of the choices {_listed(entry.choices)}",
            where=where,
            nearest=nearest(value, entry.choices),
        )
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    closest = min(max(value, entry.low), entry.high) if number and value == value else entry.low
    if entry.type == "int":
        closest = int(min(max(round(closest), entry.low), entry.high))
    whole = " of whole numbers" if entry.type == "int" else ""
    raise ConfigError(
        f"{name}: {value!r} is outside its range [{entry.low:g}, {entry.high:g}]{whole}",
        where=where,
        nearest=f"{closest:g}",
    )


def check_queue(config: Config) -> None:
    """Check every trial of `study.queue`.

    Raises:
        ConfigError: the first that cannot be run.
    """
    for index, values in enumerate(config.study.queue):
        check_queued(config, values, f"study.queue[{index}]")


def enqueue_configured(config: Config, study: optuna.Study) -> None:
    """Queue the trials of `study.queue` that the study does not have yet."""
    missing = [check_queued(config, values, f"study.queue[{i}]") for i, values in enumerate(config.study.queue)]
    if not missing:
        return
    for trial in study.get_trials(deepcopy=False):
        parameters = queued_parameters(trial)
        if parameters in missing:
            missing.remove(parameters)
    for values in missing:
        study.enqueue_trial(values)


def queue_trial(directory: StudyDirectory, values: Mapping[str, Any]) -> int:
    """Queue a trial of a study, which may be running.

    Args:
        directory: of the study.
        values: dotted name → value; the sampler draws the parameters that are left out.

    Returns:
        The number of the queued trial.

    Raises:
        ConfigError: the study has not started, or the values are not in its space.
    """
    config = directory.load_config()
    checked = check_queued(config, values, "queue")
    url = directory.storage_url(config)
    if not require_existing_study(url, directory.name, directory.directory):
        raise ConfigError(
            f"study {directory.name!r} has not started: list the trial under study.queue in its space file",
            where="queue",
        )
    space = {name: entry.model_dump(mode="json") for name, entry in config.space.items()}
    study = open_study(open_storage(url), directory.name, directions(config), space)
    study.enqueue_trial(checked)
    waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    return max(trial.number for trial in waiting if queued_parameters(trial) == checked)


def _listed(values) -> str:
    return ", ".join(map(str, values))
