"""Everything that is used of Optuna beyond its documented interface, each with a fallback.

`tests/search/test_optuna_compat.py` fails if an Optuna release changes one of these; `pyproject.toml` bounds the
release.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

# Where Optuna keeps the parameters of `Study.enqueue_trial`, in the system attributes of a trial.
FIXED_PARAMETERS = "fixed_params"
# Methods of `RDBStorage` that reach the database without going through a method of `BaseStorage`.
PRIVATE_STORAGE_METHODS = ("_create_new_trial", "_set_trial_param", "_get_trials", "_get_best_trial_id")


def reopen_trial(study: optuna.Study, trial_id: int) -> optuna.Trial:
    """A handle on a stored trial. Optuna documents `Trial` as made by `Study.ask` only, which cannot reopen one."""
    return optuna.Trial(study, trial_id)


def queued_parameters(trial: FrozenTrial) -> dict[str, Any]:
    """The parameters given to `Study.enqueue_trial`; {} if the trial was not queued that way."""
    parameters = trial.system_attrs.get(FIXED_PARAMETERS, {})
    return dict(parameters) if isinstance(parameters, dict) else {}


def set_queued_parameters(storage: optuna.storages.BaseStorage, trial_id: int, parameters: dict[str, Any]) -> None:
    """Replace the parameters that `Study.enqueue_trial` stored; `Trial.suggest_*` returns them."""
    storage.set_trial_system_attr(trial_id, FIXED_PARAMETERS, parameters)


def storage_methods(storage_class: type) -> Iterable[str]:
    """The public methods of a storage that read or write its database, and the private ones that exist."""
    public = ("create_", "set_", "get_", "delete_")
    names = [name for name in dir(optuna.storages.BaseStorage) if name.startswith(public)]
    return [*names, *(name for name in PRIVATE_STORAGE_METHODS if hasattr(storage_class, name))]


# Where Optuna kept the excesses of all constraints before it had named ones, and where optuna-dashboard reads them.
LEGACY_CONSTRAINTS = "constraints"


def set_legacy_constraints(trial: optuna.Trial, excesses: Sequence[float]) -> None:
    """Store the excesses in the form that optuna-dashboard reads, besides `Trial.set_constraint`."""
    trial.storage.set_trial_system_attr(trial._trial_id, LEGACY_CONSTRAINTS, list(excesses))


def named_constraints(trial: FrozenTrial) -> dict[str, float]:
    """The constraints of `Trial.set_constraint`, without those in the older form, whose names are their indices."""
    return {key: value for key, value in trial.constraints.items() if not key.isdigit()}


def without_legacy_constraints(trial: FrozenTrial) -> FrozenTrial:
    """The trial with each constraint once, for a sampler."""
    if LEGACY_CONSTRAINTS not in trial.system_attrs:
        return trial
    trial = copy.copy(trial)
    trial.system_attrs = {key: value for key, value in trial.system_attrs.items() if key != LEGACY_CONSTRAINTS}
    return trial


class StudyView(optuna.Study):
    """A study whose trials a sampler sees through a filter.

    Samplers read trials by the private `Study._get_trials` (cached within one trial) or the public `get_trials`. Both
    are filtered; if a release drops the private one, nothing but the cache is lost.

    Args:
        study: the study behind the view.
        select: (trials, requested states) → the trials that are shown.
        hidden_states: states to be read in addition, because ``select`` needs them.
    """

    def __init__(
        self,
        study: optuna.Study,
        select: Callable[[list[FrozenTrial], Sequence[TrialState] | None], list[FrozenTrial]],
        hidden_states: tuple[TrialState, ...] = (),
    ):
        self.__dict__.update(study.__dict__)
        self._whole, self._select, self._hidden_states = study, select, hidden_states

    def get_trials(self, deepcopy=True, states=None) -> list[FrozenTrial]:
        return self._select(self._whole.get_trials(deepcopy, self._states(states)), states)

    def _get_trials(self, deepcopy=True, states=None, use_cache=False) -> list[FrozenTrial]:
        if not hasattr(self._whole, "_get_trials"):
            return self.get_trials(deepcopy, states)
        return self._select(self._whole._get_trials(deepcopy, self._states(states), use_cache), states)

    def _states(self, states: Sequence[TrialState] | None) -> Sequence[TrialState] | None:
        return states if states is None else (*states, *self._hidden_states)


def create_marked_trial(study: optuna.Study, storage, attributes: dict[str, Any]) -> optuna.Trial:
    """`Study.ask`, except that queued trials stay queued and the new trial has user attributes from its first moment.

    So a trial that a dying driver left without parameters can be distinguished from a trial of another program.
    """
    storage = getattr(study, "_storage", storage)  # Optuna's cache around a database, which must see the new trial
    template = optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs=attributes)
    trial_id = storage.create_new_trial(storage.get_study_id_from_name(study.study_name), template_trial=template)
    clear_trial_cache(study)
    return reopen_trial(study, trial_id)


def clear_trial_cache(study: optuna.Study) -> None:
    """Have samplers read the trials again, as `Study.ask` and `Study.tell` do; without the attribute there is no
    cache.
    """
    thread_local = getattr(study, "_thread_local", None)
    if thread_local is not None:
        thread_local.cached_all_trials = None
