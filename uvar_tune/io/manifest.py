"""Directories that are complete or absent: written under a temporary name, hashed, renamed into place.

``manifest.json`` names each file with its size and SHA-256 and is written last. Readers verify it before they read.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from uvar_tune.errors import ConfigError
from uvar_tune.io.atomic import fsync, staged_path
from uvar_tune.io.hashing import file_sha256
from uvar_tune.io.safe_load import read_json

MANIFEST = "manifest.json"
_PROBE_BYTES = 1 << 20


def write_directory(directory: Path, writers: Mapping[str, Callable[[Path], Any]], metadata: Mapping[str, Any]) -> None:
    """Write files and their manifest in one step: ``directory`` holds all of them afterwards, or what it held before.

    Args:
        directory: replaced if it exists.
        writers: file name → function that writes the file to the path it is given.
        metadata: further entries of the manifest.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    staged = staged_path(directory)
    staged.mkdir()
    try:
        for name, write in writers.items():
            _write(write, staged / name)
            fsync(staged / name)
        files = {
            name: {"bytes": (staged / name).stat().st_size, "sha256": file_sha256(staged / name)} for name in writers
        }
        manifest = json.dumps({**metadata, "files": files}, indent=1, allow_nan=False)
        (staged / MANIFEST).write_text(manifest, encoding="utf-8")
        fsync(staged / MANIFEST)
        fsync(staged)
        _replace(staged, directory)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    fsync(directory.parent)


def verify_directory(
    directory: Path, *, needed: Collection[str], optional: Collection[str] = (), hashes: bool = True
) -> dict[str, Any]:
    """The manifest, after every file was compared with it.

    Args:
        directory: as `write_directory` made it.
        needed: files that the manifest must name and that must exist.
        optional: files that it may name; they may have been deleted since.
        hashes: compare contents too, not only sizes.

    Raises:
        ConfigError: no manifest, a file it must not name, or one that is missing, unreadable or of another size or
            content.
    """
    try:
        manifest = read_json(directory / MANIFEST)
        files = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        message = error.message if isinstance(error, ConfigError) else error
        raise ConfigError(f"no readable {MANIFEST} ({str(message):.200})", where=str(directory)) from error
    if not set(needed) <= set(files) <= {*needed, *optional}:
        raise ConfigError(
            f"{MANIFEST} names {str(sorted(files)):.200}, expected {sorted(needed)} and perhaps {sorted(optional)}",
            where=str(directory),
        )
    for name, (size, sha256) in files.items():
        try:
            if not (directory / name).is_file() and name in optional:
                continue
            difference = _difference(directory / name, size, sha256 if hashes else None)
        except OSError as error:
            difference = f"cannot be read ({error.strerror})"
        if difference:
            raise ConfigError(f"{name} {difference}", where=str(directory))
    return manifest


def remove_directory(directory: Path) -> None:
    """Delete a directory; concurrent readers see all of it or nothing."""
    renamed = staged_path(directory)
    os.rename(directory, renamed)
    shutil.rmtree(renamed)


def remove_leftovers(parent: Path, name: str = "*") -> None:
    """Delete what killed writers of ``parent/name`` left behind; the caller is the only writer at the time."""
    for path in parent.glob(f".{name}.{'?' * 32}.tmp"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _difference(path: Path, size: int, sha256: str | None) -> str | None:
    """How the file differs from its manifest; None if it does not."""
    if not path.is_file():
        return "is missing"
    if (actual := path.stat().st_size) != size:
        return f"has {actual:,} bytes, its manifest says {size:,}"
    if sha256 is not None and file_sha256(path) != sha256:
        return "does not have the content that its manifest states"
    return None


def _write(write: Callable[[Path], Any], path: Path) -> None:
    """Run ``write(path)``; if a library fails on a full disk without saying so, raise the OSError that does."""
    try:
        write(path)
    except Exception:
        with path.open("ab") as handle:
            handle.write(bytes(_PROBE_BYTES))
        raise


def _replace(staged: Path, directory: Path) -> None:
    """Rename into place; an existing directory is removed, also one of a concurrent writer."""
    while True:
        with contextlib.suppress(FileNotFoundError):
            if directory.exists():
                remove_directory(directory)
        try:
            return os.rename(staged, directory)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
