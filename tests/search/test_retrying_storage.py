"""A database that does not answer for a while, with a lock held by another connection."""

from __future__ import annotations

import sqlite3
import threading

import optuna
import pytest

from uvar_tune.errors import InfrastructureError
from uvar_tune.search.storage import RetryingStorage


@pytest.fixture
def locked(tmp_path):
    """(storage, study, connection that can lock its database)"""
    storage = RetryingStorage(f"sqlite:///{tmp_path / 'optuna.db'}", wait_sec=60)
    study = optuna.create_study(storage=storage)
    connection = sqlite3.connect(tmp_path / "optuna.db", check_same_thread=False, isolation_level=None)
    yield storage, study, connection
    connection.close()


def test_a_call_waits_until_the_lock_is_gone(locked, caplog):
    storage, study, connection = locked
    connection.execute("begin exclusive")
    release = threading.Timer(7, lambda: connection.execute("rollback"))  # longer than SQLite itself waits
    release.start()
    trial = study.ask()
    assert not release.is_alive() and trial.number == 0
    study.tell(trial, 1.0)
    assert [found.value for found in study.trials] == [1.0]
    assert sum("waiting for it" in record.message for record in caplog.records) == 1


def test_it_does_not_wait_for_ever(locked):
    storage, study, connection = locked
    storage._wait_sec = 1.0
    connection.execute("begin exclusive")
    with pytest.raises(InfrastructureError, match="has not answered for 1 s.*locked"):
        storage.set_study_user_attr(study._study_id, "key", 1)
    connection.execute("rollback")
    storage.set_study_user_attr(study._study_id, "key", 2)
    assert storage.get_study_user_attrs(study._study_id) == {"key": 2}


def test_state_with_a_lost_answer_is_set_once(locked, monkeypatch):
    """The database carries the call out, and the connection breaks before it says so."""
    storage, study, _ = locked
    from sqlalchemy.exc import OperationalError

    from uvar_tune.search import storage as storage_module

    trial, original = study.ask(), optuna.storages.RDBStorage.set_trial_state_values
    answers = iter([OperationalError("commit", {}, ConnectionError("server closed the connection"))])

    def set_trial_state_values(self, *arguments, **named):
        done = original(self, *arguments, **named)
        for error in answers:
            raise error
        return done

    monkeypatch.setattr(RetryingStorage, "set_trial_state_values", storage_module.retrying(set_trial_state_values))
    study.tell(trial, 3.0)
    assert [(found.number, found.value) for found in study.trials] == [(0, 3.0)]
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):  # another value is no answer that was lost
        storage.set_trial_state_values(trial._trial_id, optuna.trial.TrialState.COMPLETE, [4.0])


def test_other_errors_come_at_once(locked):
    storage, study, _ = locked
    with pytest.raises(KeyError):
        storage.get_trial(99)
