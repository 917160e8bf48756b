"""One study, one directory, although its storage may be one that several machines reach."""

from __future__ import annotations

import socket
import uuid
from pathlib import Path

from uvar_tune.errors import ConfigError
from uvar_tune.io.atomic import write_text_atomic
from uvar_tune.io.uri import redact_url
from uvar_tune.search.storage import holds

_IDENTITY = ".identity"
_ATTRIBUTE = "directory"


def verify_directory_owner(storage, study: str, directory: Path) -> None:
    """Note in the storage which directory holds the study's files, or check that it is this one.

    What says so is a word in the directory, so that one that was moved, or is mounted elsewhere, is still the same.

    Raises:
        ConfigError: the trials of this storage have their files in another directory.
    """
    study_id = storage.get_study_id_from_name(study)
    identity = _identity(directory / _IDENTITY)
    known = storage.get_study_user_attrs(study_id).get(_ATTRIBUTE)
    if known is None:
        storage.set_study_user_attr(
            study_id, _ATTRIBUTE, {"identity": identity, "path": f"{socket.gethostname()}:{directory}"}
        )
    elif known["identity"] != identity:
        raise ConfigError(
            f"the storage knows a study {study!r} whose files lie in {known['path']}, not in {directory}: continue "
            "it there, or take another --study name",
            where="run.root",
        )


def require_existing_study(url: str, study: str, directory: Path) -> bool:
    """Whether the storage holds the study, which is not made by asking.

    Raises:
        ConfigError: it does not, and there are trials in the study's directory: another storage holds it, or did.
    """
    if holds(url, study):
        return True
    if is_of_a_study(directory) and any(directory.glob("trials/*")):
        raise ConfigError(
            f"{redact_url(url.removeprefix('journal:'))} does not hold study {study!r}, whose trials lie in {directory}: "
            "give the storage with which it was begun (UVAR_STORAGE), or bring it back",
            where="run.storage",
        )
    return False


def is_of_a_study(directory: Path) -> bool:
    """Whether a search was ever begun in this directory, which may also be that of a final run."""
    return (directory / _IDENTITY).exists()


def _identity(path: Path) -> str:
    if not path.exists():
        write_text_atomic(path, uuid.uuid4().hex)
    return path.read_text()
