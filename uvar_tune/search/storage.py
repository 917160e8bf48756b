"""The Optuna storage of a study: opening it, waiting for a database that does not answer, and which directory a study
has.

A storage is a journal file (``journal:PATH``) or any database URL that Optuna takes. Messages name the kind of a
storage and the server's host, never credentials.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import socket
import time
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial
from sqlalchemy import create_engine
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

from uvar_tune.errors import ConfigError, InfrastructureError
from uvar_tune.io.atomic import write_text_atomic
from uvar_tune.io.uri import redact_secrets, redact_url
from uvar_tune.search import _optuna_compat as compat

_LOG = logging.getLogger(__name__)
_FIRST_PAUSE_SEC, _LONGEST_PAUSE_SEC = 0.2, 5.0
_IDENTITY = ".identity"  # a file in the study directory
_DIRECTORY = "directory"  # the study attribute that holds its content
_WHERE = "run.storage"
_LAST_LINE_BYTES = 1 << 20
# What a database says → what to do about it. PostgreSQL's, MySQL's and SQLite's words; the first match counts.
_REMEDIES = (
    (r"password authentication failed|Access denied|no password supplied", "check user and password of the URL"),
    (r"database .* does not exist|Unknown database", "create the database first, e.g. with `createdb`"),
    (r"role .* does not exist", "check the user of the URL"),
    (r"Connection refused|Can't connect to", "start the server, or check host and port of the URL"),
    (
        r"could not translate host|failed to resolve host|Name or service not known|getaddrinfo",
        "check the host of the URL",
    ),
    (r"timeout|timed out|unreachable", "check that the host is reachable from this machine"),
    (r"file is not a database|file is encrypted", "give the path of an SQLite database"),
    (r"unable to open database file", "check that the directory exists and can be written"),
    (r"too many (connections|clients)", "raise the server's connection limit, or run fewer studies on it"),
)


def open_storage(url: str) -> optuna.storages.BaseStorage:
    """Open ``journal:PATH`` or any Optuna storage URL, creating it if it does not exist.

    Raises:
        ConfigError: it cannot be opened; the message gives reason and remedy, without credentials.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            if url.startswith("journal:"):
                return _open_journal(url.removeprefix("journal:"))
            return RetryingStorage(url)
        except (
            ImportError,
            OSError,
            ValueError,
            RuntimeError,
            SQLAlchemyError,
            optuna.exceptions.OptunaError,
        ) as error:
            raise _storage_error(url, error) from error


def check_storage(url: str) -> None:
    """Check that a storage can be opened, without creating it.

    Raises:
        ConfigError: it cannot be opened.
    """
    kind, _, file = url.partition(":")
    try:
        if kind != "journal":
            engine = create_engine(url)
            file = engine.url.database if engine.dialect.name == "sqlite" else None
        if kind == "journal" and Path(file).is_dir():
            raise ConfigError(f"{file} is a directory, and a journal is a file", where=_WHERE)
        if file and file != ":memory:" and not Path(file).exists():
            if not Path(file).absolute().parent.is_dir():
                raise ConfigError(f"{Path(file).absolute().parent} is not a directory", where=_WHERE)
        elif kind != "journal":
            with engine.connect() as connection:
                connection.exec_driver_sql("select count(*) from sqlite_master" if file else "select 1")
    except ConfigError:
        raise
    except (ImportError, OSError, RuntimeError, ValueError, SQLAlchemyError) as error:
        raise _storage_error(url, error) from None


def _storage_error(url: str, error: BaseException) -> ConfigError:
    """The reason why a storage cannot be opened and what to do about it, in one line without credentials."""
    kind = re.split(r"[:+]", url, maxsplit=1)[0]
    if isinstance(error, ImportError):
        reason = f"needs a driver that is not installed ({error.__cause__ or error})"
        return ConfigError(
            f"storage of kind {kind!r} {reason}; for PostgreSQL install uvar-tune[postgresql]", where=_WHERE
        )
    if _has_unencoded_at(url):
        return ConfigError(
            f"storage of kind {kind!r}: user or password of the URL holds an unencoded '@'; write %40", where=_WHERE
        )
    if isinstance(error, ArgumentError):  # not a URL, or an unknown kind of database
        return ConfigError(
            f"storage of kind {kind!r} is unknown: give journal:PATH or a URL such as sqlite:////PATH", where=_WHERE
        )
    if "optuna storage upgrade" in str(error):
        return ConfigError(
            f"storage of kind {kind!r} has the schema of another Optuna release; make a backup, then run "
            "`optuna storage upgrade --storage URL`",
            where=_WHERE,
        )
    text = _driver_message(error, url)
    remedy = next((remedy for pattern, remedy in _REMEDIES if re.search(pattern, text, re.IGNORECASE)), None)
    return ConfigError(
        f"storage of kind {kind!r} cannot be opened: {text}" + (f"; {remedy}" if remedy else ""), where=_WHERE
    )


def _has_unencoded_at(url: str) -> bool:
    return url.partition("://")[2].partition("/")[0].count("@") > 1


def _driver_message(error: BaseException, url: str) -> str:
    """The first line that the database's own driver gave, without credentials; the type of an error without text."""
    while error.__cause__ is not None and not isinstance(error, DBAPIError):
        error = error.__cause__
    original = getattr(error, "orig", None) or error
    if isinstance(original, OSError) and original.strerror:
        return f"{original.strerror}: {original.filename}" if original.filename else original.strerror
    return redact_secrets(str(original), url) or type(original).__name__


def _open_journal(path: str) -> optuna.storages.BaseStorage:
    journal = optuna.storages.journal
    if os.path.exists(path) and _complete_bytes(path) < os.path.getsize(path):
        _truncate_torn_line(path, journal.JournalFileSymlinkLock(path))
    storage = optuna.storages.JournalStorage(journal.JournalFileBackend(path))
    try:
        storage.get_all_studies()  # reads the journal
        damaged = not _last_line_parses(path)  # which Optuna notices only once another line follows
    except json.JSONDecodeError:
        damaged = True
    if damaged:
        raise ConfigError(
            f"line {_damaged_line(path)} of {path} is damaged (NFS without locks does that); copy the file, delete "
            "that line, and start again",
            where=_WHERE,
        )
    return storage


def _last_line_parses(path: str) -> bool:
    with open(path, "rb") as journal:
        journal.seek(max(0, os.path.getsize(path) - _LAST_LINE_BYTES))
        *_, last = [b"{}", *journal.readlines()]
    try:
        json.loads(last)
    except ValueError:
        return not last.endswith(b"\n") or len(last) >= _LAST_LINE_BYTES  # being written, or longer than looked at
    return True


def _damaged_line(path: str) -> int | None:
    """The number of the first line that is not JSON."""
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                json.loads(line)
            except ValueError:
                return number
    return None


def _truncate_torn_line(path: str, lock) -> None:
    """Remove a last line that was written in part (full disk, power loss).

    The next line would be appended to it, and a line that does not parse makes the whole journal unreadable. Under
    Optuna's lock no process is in the middle of a line.
    """
    lock.acquire()
    try:
        os.truncate(path, _complete_bytes(path))
    finally:
        lock.release()


def _complete_bytes(path: str) -> int:
    """The size of the file up to the end of its last complete line."""
    with open(path, "rb") as journal:
        end = journal.seek(0, os.SEEK_END)
        while end > 0:
            journal.seek(end - 1)
            if journal.read(1) == b"\n":
                break
            end -= 1
    return end


class RetryingStorage(optuna.storages.RDBStorage):
    """Optuna's database storage with retries: a call is repeated while the database is locked, restarting or
    unreachable.

    A lost answer may belong to a call that was carried out, so calls must be repeatable: a state that was set before is
    accepted if it is the same, and a trial that was created twice is found by its number.

    Args:
        url: of the database.
        wait_sec: how long a call is repeated; then it raises InfrastructureError.
    """

    def __init__(self, url: str, *, wait_sec: float = 600.0):
        self._wait_sec = 0.0  # opening an unreachable database fails at once
        self._in_call = False
        super().__init__(url)
        self._wait_sec = wait_sec


def retrying(method: Callable[..., Any]) -> Callable[..., Any]:
    """A storage method that is repeated until the database answers."""

    @functools.wraps(method)
    def wrapper(self: RetryingStorage, *args: Any, **kwargs: Any) -> Any:
        if self._in_call:  # called by another method, which retries
            return method(self, *args, **kwargs)
        self._in_call = True
        try:
            return _retry(self, method, args, kwargs)
        finally:
            self._in_call = False

    return wrapper


for _name in compat.storage_methods(optuna.storages.RDBStorage):
    setattr(RetryingStorage, _name, retrying(getattr(optuna.storages.RDBStorage, _name)))


def _retry(storage: RetryingStorage, method: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    deadline, pause = time.monotonic() + storage._wait_sec, 0.0
    while True:
        try:
            return method(storage, *args, **kwargs)
        except optuna.exceptions.UpdateFinishedTrialError:
            retried = pause and method.__name__ == "set_trial_state_values"
            if not (retried and _has_state(storage, *args, **kwargs)):
                raise
            return True
        except Exception as error:
            if (reason := _is_transient(error)) is None or not storage._wait_sec:
                raise
            if time.monotonic() > deadline:
                raise InfrastructureError(
                    f"the Optuna storage has not answered for {storage._wait_sec:.0f} s ({reason}); the same command "
                    "continues"
                ) from error
            if not pause:
                _LOG.warning(
                    "the Optuna storage does not answer (%s): waiting for it, up to %.0f s", reason, storage._wait_sec
                )
            pause = min(max(_FIRST_PAUSE_SEC, 2 * pause), _LONGEST_PAUSE_SEC)
            time.sleep(pause)


def _has_state(storage: RetryingStorage, trial_id: int, state, values=None) -> bool:
    """Whether a trial already has this state and these values, set by a call whose answer was lost."""
    trial = storage.get_trial(trial_id)
    return trial.state == state and (values is None or list(trial.values) == list(values))


def _is_transient(error: BaseException | None) -> str | None:
    """Why the database did not answer, in its driver's words and without the statement; None for any other error."""
    while error is not None:
        if isinstance(error, OperationalError | InterfaceError) or (
            isinstance(error, DBAPIError) and error.connection_invalidated
        ):
            lines = str(error.orig).splitlines()
            return f"{type(error.orig).__name__}: {lines[0]}" if lines else type(error).__name__
        error = error.__cause__
    return None


def open_study(storage, name: str, directions: list[str], space: dict[str, Any]) -> optuna.Study:
    """The Optuna study of this name, created if it does not exist.

    Args:
        storage: an Optuna storage.
        name: of the Optuna study: NAME, or NAME/SUB_STUDY.
        directions: minimize or maximize, one a metric.
        space: plain data that must equal what the study was created with.

    Raises:
        ConfigError: it exists with other directions or another space; the first differences are shown.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(study_name=name, storage=storage, directions=directions, load_if_exists=True)
    except ValueError as error:  # Optuna's own check of the number of objectives
        raise ConfigError(f"the stored study {name!r} has other objectives: {error}", where="study.metric") from None
    stored = [direction.name.lower() for direction in study.directions]
    if stored != directions:
        raise ConfigError(
            f"the stored study {name!r} is to {', '.join(stored)} its metrics, this one is to "
            f"{', '.join(directions)} them",
            where="study.metric",
        )
    attributes = storage.get_study_user_attrs(storage.get_study_id_from_name(name))
    if "space" not in attributes:
        study.set_user_attr("space", space)
    elif attributes["space"] != space:
        before = attributes["space"]
        changes = [
            f"{key}: {_change(before.get(key), space.get(key))}"
            for key in {**before, **space}
            if before.get(key) != space.get(key)
        ]
        raise ConfigError(
            f"the stored study {name!r} has another space: {'; '.join(changes[:3])}; take another --study name",
            where=_WHERE,
        )
    return study


def _change(before: Any, after: Any) -> str:
    """What differs between two values; of two mappings only the fields that differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        fields = [key for key in {**before, **after} if before.get(key) != after.get(key)]
        return ", ".join(f"{key} was {before.get(key)}, is {after.get(key)}" for key in fields)
    return f"was {before}, is {after}"


def study_trials(storage, name: str) -> list[FrozenTrial]:
    """The trials of an Optuna study, by number; [] if there is no such study."""
    try:
        study_id = storage.get_study_id_from_name(name)
    except KeyError:
        return []
    return storage.get_all_trials(study_id, deepcopy=False)


def trials_by_phase(url: str, name: str) -> dict[str, list[FrozenTrial]]:
    """The proposed trials of a study and of its sub-studies, without creating anything.

    Args:
        url: of the storage.
        name: of the study.

    Returns:
        Sub-study (noise, confirm, …; "" for the search) → its trials by number.

    Raises:
        ConfigError: the storage cannot be opened.
    """
    storage = _open_existing(url)
    names = [study.study_name for study in storage.get_all_studies()] if storage else []
    return {
        own[len(name) + 1 :]: [trial for trial in study_trials(storage, own) if "values" in trial.user_attrs]
        for own in names
        if own == name or own.startswith(f"{name}/")
    }


def study_exists(url: str, name: str) -> bool:
    """Whether a storage has a study of this name; nothing is created.

    Raises:
        ConfigError: the storage cannot be opened.
    """
    storage = _open_existing(url)
    return storage is not None and name in {study.study_name for study in storage.get_all_studies()}


def _open_existing(url: str) -> optuna.storages.BaseStorage | None:
    """The storage; None for a file that does not exist, which opening would create."""
    for kind in ("journal:", "sqlite:///"):
        file = url.removeprefix(kind).partition("?")[0]
        if url.startswith(kind) and not file.startswith("file:") and not os.path.exists(file):
            return None
    return open_storage(url)


def verify_directory_owner(storage, study: str, directory: Path) -> None:
    """Record in the storage which directory has the study's files, or check that it is this one.

    The record is the content of a file in the directory, so that a directory stays the same after a move or on another
    mount point.

    Raises:
        ConfigError: the trials of this storage have their files in another directory.
    """
    study_id = storage.get_study_id_from_name(study)
    identity = _read_or_create_identity(directory / _IDENTITY)
    owner = storage.get_study_user_attrs(study_id).get(_DIRECTORY)
    if owner is None:
        storage.set_study_user_attr(
            study_id, _DIRECTORY, {"identity": identity, "path": f"{socket.gethostname()}:{directory}"}
        )
    elif owner["identity"] != identity:
        raise ConfigError(
            f"the storage has a study {study!r} whose files are in {owner['path']}, not in {directory}: continue "
            "it there, or take another --study name",
            where="run.root",
        )


def require_existing_study(url: str, study: str, directory: Path) -> bool:
    """Whether the storage has the study; it is not created.

    Raises:
        ConfigError: it has not, although the study's directory holds trials: they belong to another storage.
    """
    if study_exists(url, study):
        return True
    if is_study_directory(directory) and any(directory.glob("trials/*")):
        raise ConfigError(
            f"{redact_url(url.removeprefix('journal:'))} does not hold study {study!r}, whose trials are in "
            f"{directory}: give the storage with which it was started (UVAR_STORAGE), or restore it",
            where=_WHERE,
        )
    return False


def is_study_directory(directory: Path) -> bool:
    """Whether a search was started in this directory; it may also be that of a final run."""
    return (directory / _IDENTITY).exists()


def _read_or_create_identity(path: Path) -> str:
    if not path.exists():
        write_text_atomic(path, uuid.uuid4().hex)
    return path.read_text(encoding="utf-8")
