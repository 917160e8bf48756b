"""Checks of output paths before any work: the path is writable, and no input or checkpoint is overwritten."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from uvar_tune.errors import ConfigError

_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def check_picture(out: str, inputs: Iterable[str | None], where: str = "--out") -> None:
    """Check the path of a PNG file to write. An existing PNG file or an empty file may be overwritten, nothing else.

    Args:
        out: path of the file.
        inputs: paths that the command reads; None is ignored.
        where: option that the message names.

    Raises:
        ConfigError: not a writable ``.png`` path, one of the inputs, or inside a checkpoint.
    """
    path, suggestion = Path(out), None
    try:
        problem = _overwritten(path, [name for name in inputs if name is not None])
        if not problem and path.suffix.lower() != ".png":
            problem = "does not end in .png, and a PNG file is written"
            suggestion = f"{path.parent / (path.stem or 'samples')}.png"
        problem = problem or unwritable_reason(path.parent)
    except OSError as error:
        problem = f"cannot be written: {error.strerror}"
    if problem:
        raise ConfigError(f"{out} {problem}", where=where, nearest=suggestion)


def check_directory(directory: str | Path, where: str = "--out") -> None:
    """Check that files can be written in ``directory``, which need not exist yet.

    Raises:
        ConfigError: they cannot.
    """
    problem = unwritable_reason(Path(directory))
    if problem:
        raise ConfigError(f"{directory} {problem}", where=where)


def check_exists(path: str | None, where: str) -> None:
    """Raise `ConfigError` if ``path`` is given and does not exist."""
    if path is not None and not os.path.exists(path):
        raise ConfigError(f"{path} does not exist", where=where)


def nearest_existing(path: Path) -> Path:
    """``path`` itself or its nearest existing parent."""
    return next(candidate for candidate in (path, *path.parents) if os.path.lexists(candidate))


def unwritable_reason(directory: Path) -> str | None:
    """Why no file can be written in ``directory``, or in its nearest existing parent; None if one can."""
    try:
        parent = nearest_existing(directory)
        if not parent.is_dir():
            return f"cannot be written: {parent} is not a directory"
        with tempfile.TemporaryFile(dir=parent) as probe:
            probe.write(_PNG_MAGIC)
    except OSError as error:
        return f"cannot be written: {error.strerror}"
    return None


def _overwritten(path: Path, inputs: list[str]) -> str | None:
    """What writing an image to ``path`` would destroy, other than another image; None if nothing."""
    for name in inputs:
        if os.path.exists(path) and os.path.exists(name) and os.path.samefile(path, name):
            return f"is the input {name}: it would be replaced"
    for parent in Path(os.path.realpath(path)).parents:
        siblings = parent.iterdir() if parent.name == "checkpoints" and parent.is_dir() else ()
        if _is_checkpoint(parent) or any(map(_is_checkpoint, siblings)):
            return f"is inside {parent}, among the files of checkpoints"
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not path.is_file():
        return "exists and is not a file"
    if not os.access(path, os.W_OK):
        return "exists and cannot be written"
    with open(path, "rb") as handle:
        is_image = handle.read(len(_PNG_MAGIC)) in (_PNG_MAGIC, b"")
    return None if is_image else "exists and is not a PNG file: it would be replaced"


def _is_checkpoint(directory: Path) -> bool:
    """Whether the directory holds weights and their manifest: a checkpoint or a tokenizer."""
    return (directory / "manifest.json").is_file() and any(directory.glob("*.safetensors"))
