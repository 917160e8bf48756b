"""A database that is locked or away for a while: what is asked of it is asked again until it answers."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import Any

import optuna
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from uvar_tune.errors import InfrastructureError

_LOG = logging.getLogger(__name__)
_FIRST_SEC, _LONGEST_SEC = 0.2, 5.0
_METHODS = (
    "create_new_study",
    "set_study_user_attr",
    "set_study_system_attr",
    "get_study_id_from_name",
    "get_study_name_from_id",
    "get_study_directions",
    "get_study_user_attrs",
    "get_study_system_attrs",
    "get_all_studies",
    "create_new_trial",
    "set_trial_param",
    "get_trial_id_from_study_id_trial_number",
    "set_trial_state_values",
    "set_trial_intermediate_value",
    "set_trial_user_attr",
    "set_trial_system_attr",
    "get_trial",
    "get_all_trials",
    "get_n_trials",
    "_create_new_trial",
    "_set_trial_param",
    "_get_trials",
    "_get_best_trial_id",
)


class RetryingStorage(optuna.storages.RDBStorage):
    """Optuna's storage in a database, each call of which waits for one that is locked, restarting or out of reach.

    An answer that was lost with its connection may belong to a call that was carried out. All calls can be made twice: a
    state that is told again stands as it was told, and a trial that was made twice is found by its number.

    Args:
        wait_sec: how long a call waits; then it raises InfrastructureError.
    """

    def __init__(self, url: str, *, wait_sec: float = 600.0):
        self._wait_sec = 0.0  # whoever opens a storage that is away is told at once
        self._in_call = False
        super().__init__(url)
        self._wait_sec = wait_sec


def patient(method: Callable[..., Any]) -> Callable[..., Any]:
    """``method`` of a storage, called until the database answers."""

    @functools.wraps(method)
    def patiently(self: RetryingStorage, *arguments: Any, **named: Any) -> Any:
        if self._in_call:  # asked by another call, which waits
            return method(self, *arguments, **named)
        self._in_call = True
        try:
            return _insist(self, method, arguments, named)
        finally:
            self._in_call = False

    return patiently


for _name in _METHODS:
    setattr(RetryingStorage, _name, patient(getattr(optuna.storages.RDBStorage, _name)))


def _insist(storage: RetryingStorage, method: Callable[..., Any], arguments: tuple, named: dict[str, Any]) -> Any:
    deadline, pause = time.monotonic() + storage._wait_sec, 0.0
    while True:
        try:
            return method(storage, *arguments, **named)
        except optuna.exceptions.UpdateFinishedTrialError:
            if not (pause and method.__name__ == "set_trial_state_values" and _told(storage, *arguments, **named)):
                raise
            return True
        except Exception as error:
            if (why := _away(error)) is None or not storage._wait_sec:
                raise
            if time.monotonic() > deadline:
                raise InfrastructureError(
                    f"the Optuna storage has not answered for {storage._wait_sec:.0f} s ({why}); the same command "
                    "continues"
                ) from error
            if not pause:
                _LOG.warning(
                    "the Optuna storage does not answer (%s): waiting for it, up to %.0f s", why, storage._wait_sec
                )
            pause = min(max(_FIRST_SEC, 2 * pause), _LONGEST_SEC)
            time.sleep(pause)


def _told(storage: RetryingStorage, trial_id: int, state, values=None) -> bool:
    """Whether a trial stands as it was told, by a call whose answer was lost."""
    trial = storage.get_trial(trial_id)
    return trial.state == state and (values is None or list(trial.values) == list(values))


def _away(error: BaseException | None) -> str | None:
    """In the words of the database's driver, without what was asked of it: why it did not answer; None for other errors."""
    while error is not None:
        if isinstance(error, OperationalError | InterfaceError) or (
            isinstance(error, DBAPIError) and error.connection_invalidated
        ):
            return (
                f"{type(error.orig).__name__}: {str(error.orig).splitlines()[0]}"
                if str(error.orig)
                else type(error).__name__
            )
        error = error.__cause__
    return None
