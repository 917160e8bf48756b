"""Directories that are either whole or not there: written aside, hashed, renamed into place.

``manifest.json`` names each file with its size and SHA-256 and is written last. Readers check before they read.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from uvar_tune.errors import ConfigError
from uvar_tune.io.safe_load import read_json

MANIFEST = "manifest.json"
_BLOCK = 1 << 20


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def write_directory(directory: Path, writers: Mapping[str, Callable[[Path], Any]], facts: Mapping[str, Any]) -> None:
    """Write files and their manifest as one: ``directory`` holds all of them afterwards, or what it held before.

    Args:
        writers: file name → what writes it to the path given.
        facts: further entries of the manifest.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    staged = directory.with_name(f".{directory.name}.{uuid.uuid4().hex}.tmp")
    staged.mkdir()
    try:
        for name, write in writers.items():
            _write(write, staged / name)
            _sync(staged / name)
        files = {
            name: {"bytes": (staged / name).stat().st_size, "sha256": file_sha256(staged / name)} for name in writers
        }
        (staged / MANIFEST).write_text(json.dumps({**facts, "files": files}, indent=1, allow_nan=False))
        _sync(staged / MANIFEST)
        _sync(staged)
        _put(staged, directory)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    _sync(directory.parent)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file, waiting for it as long as it takes; the system lets go of it when a holder dies."""
    with path.open("ab") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def check_directory(
    directory: Path, *, needed: Collection[str], optional: Collection[str] = (), hashes: bool = True
) -> dict[str, Any]:
    """The manifest, after every file was found to be what it says.

    Args:
        needed: files that the manifest must name and that must be there.
        optional: files that it may name; one of them may have been deleted since.
        hashes: compare contents too, not sizes alone.

    Raises:
        ConfigError: no manifest, another file than these, one missing, unreadable, of another size, or of another content.
    """
    try:
        manifest = read_json(directory / MANIFEST)
        files = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        why = error.message if isinstance(error, ConfigError) else error
        raise ConfigError(f"no readable {MANIFEST} ({str(why):.200})", where=str(directory)) from error
    if not set(needed) <= set(files) <= {*needed, *optional}:
        raise ConfigError(
            f"{MANIFEST} names {str(sorted(files)):.200}, expected {sorted(needed)} and perhaps {sorted(optional)}",
            where=str(directory),
        )
    for name, (size, sha256) in files.items():
        try:
            if not (directory / name).is_file() and name in optional:
                continue
            wrong = _difference(directory / name, size, sha256 if hashes else None)
        except OSError as error:
            wrong = f"cannot be read ({error.strerror})"
        if wrong:
            raise ConfigError(f"{name} {wrong}", where=str(directory))
    return manifest


def _difference(path: Path, size: int, sha256: str | None) -> str | None:
    """How the file is not what its manifest says; None where it is."""
    if not path.is_file():
        return "is missing"
    if (found := path.stat().st_size) != size:
        return f"has {found:,} bytes, its manifest says {size:,}"
    if sha256 is not None and file_sha256(path) != sha256:
        return "does not have the content that its manifest states"
    return None


def remove_directory(directory: Path) -> None:
    """Delete a directory; whoever looks meanwhile sees it whole or not at all."""
    aside = directory.with_name(f".{directory.name}.{uuid.uuid4().hex}.tmp")
    os.rename(directory, aside)
    shutil.rmtree(aside)


def remove_leftovers(parent: Path) -> None:
    """Delete what writers that were killed left in ``parent``; for a directory with one writer at a time."""
    for path in parent.glob(f".*.{'?' * 32}.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def _write(write: Callable[[Path], Any], path: Path) -> None:
    """``write(path)``; where a library failed without saying that there is no room, the OSError that says it."""
    try:
        write(path)
    except Exception:
        with path.open("ab") as handle:
            handle.write(bytes(_BLOCK))
        raise


def _put(staged: Path, directory: Path) -> None:
    """Rename into place; whatever stands there goes, another writer's work too."""
    while True:
        with contextlib.suppress(FileNotFoundError):
            if directory.exists():
                remove_directory(directory)
        try:
            return os.rename(staged, directory)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise


def _sync(path: Path) -> None:
    """Have the system put a file or directory on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
