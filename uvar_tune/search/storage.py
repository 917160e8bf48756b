"""Opening the Optuna storage of a study: a journal file or any database that Optuna takes."""

from __future__ import annotations

import os
import warnings
from typing import Any

import optuna
from sqlalchemy.exc import SQLAlchemyError

from uvar_tune.errors import ConfigError
from uvar_tune.search.retrying_storage import RetryingStorage


def open_storage(url: str) -> optuna.storages.BaseStorage:
    """An Optuna storage: ``journal:PATH`` (a journal file) or any Optuna storage URL.

    Raises:
        ConfigError: the storage cannot be opened (credentials in the URL are not shown).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            if url.startswith("journal:"):
                return _open_journal(url.removeprefix("journal:"))
            return RetryingStorage(url)
        except ImportError as error:
            raise ConfigError(
                f"storage of kind {url.split(':')[0]!r} needs a driver that is not installed "
                f"({error.__cause__ or error}); for PostgreSQL install uvar-tune[postgresql]",
                where="run.storage",
            ) from error
        except (OSError, ValueError, RuntimeError, SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            raise ConfigError(
                f"storage of kind {url.split(':')[0]!r} cannot be opened: {type(error).__name__}", where="run.storage"
            ) from error


def _open_journal(path: str) -> optuna.storages.BaseStorage:
    journal = optuna.storages.journal
    if os.path.exists(path) and _whole(path) < os.path.getsize(path):
        _mend(path, journal.JournalFileSymlinkLock(path))
    return optuna.storages.JournalStorage(journal.JournalFileBackend(path))


def _mend(path: str, lock) -> None:
    """Cut off a last line that was only half written (full disk, power loss): the next append would join it, and a
    line that does not parse makes the whole journal unreadable. Under Optuna's lock nobody is in the middle of a line."""
    lock.acquire()
    try:
        os.truncate(path, _whole(path))
    finally:
        lock.release()


def _whole(path: str) -> int:
    """The bytes of the file up to the end of its last whole line."""
    with open(path, "rb") as journal:
        end = journal.seek(0, os.SEEK_END)
        while end > 0:
            journal.seek(end - 1)
            if journal.read(1) == b"\n":
                break
            end -= 1
    return end


def open_study(storage, name: str, directions: list[str], space: dict[str, Any]) -> optuna.Study:
    """The study of this name, made if it is not there.

    Raises:
        ConfigError: it is there with other directions or another space; the first differences are shown.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(study_name=name, storage=storage, directions=directions, load_if_exists=True)
    except ValueError as error:  # Optuna refuses another number of objectives by itself
        raise ConfigError(f"the stored study {name!r} has other objectives: {error}", where="study.metric") from None
    stored = [direction.name.lower() for direction in study.directions]
    if stored != directions:
        raise ConfigError(
            f"the stored study {name!r} is to {', '.join(stored)} its objectives, this one is to "
            f"{', '.join(directions)} them",
            where="study.metric",
        )
    attributes = storage.get_study_user_attrs(study._study_id)
    if "space" not in attributes:
        study.set_user_attr("space", space)
    elif attributes["space"] != space:
        was = attributes["space"]
        changed = [
            f"{key} was {was.get(key)}, is {space.get(key)}"
            for key in {**was, **space}
            if was.get(key) != space.get(key)
        ]
        raise ConfigError(
            f"the stored study {name!r} has another space: {'; '.join(changed[:3])}; take another --study name",
            where="run.storage",
        )
    return study


def trials_by_phase(url: str, name: str) -> dict[str, list[optuna.trial.FrozenTrial]]:
    """What a storage holds of a study: its trials under "", and those of each phase of its own (noise, confirm, …) by number.

    Raises:
        ConfigError: the storage cannot be opened.
    """
    found = {}
    storage = _open_existing(url)
    for study in storage.get_all_studies() if storage else ():
        if study.study_name == name or study.study_name.startswith(f"{name}/"):
            trials = storage.get_all_trials(study._study_id, deepcopy=False)
            found[study.study_name[len(name) + 1 :]] = [trial for trial in trials if "values" in trial.user_attrs]
    return found


def holds(url: str, name: str) -> bool:
    """Whether a storage has a study of this name; nothing is made by asking.

    Raises:
        ConfigError: the storage cannot be opened.
    """
    storage = _open_existing(url)
    return storage is not None and name in {study.study_name for study in storage.get_all_studies()}


def _open_existing(url: str) -> optuna.storages.BaseStorage | None:
    """The storage; None for a file that is not there, which opening would make."""
    for kind in ("journal:", "sqlite:///"):
        file = url.removeprefix(kind).partition("?")[0]
        if url.startswith(kind) and not file.startswith("file:") and not os.path.exists(file):
            return None
    return open_storage(url)
