"""Where a door is to write: that it can, and that nothing is lost by it, is found before the work begins."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from uvar_tune.errors import ConfigError

_PNG = b"\x89PNG\r\n\x1a\n"  # how every PNG file begins


def check_picture(out: str, inputs: Iterable[str | None], where: str = "--out") -> None:
    """ConfigError unless ``out`` names a PNG file that can be written, is none of the ``inputs`` and lies in no checkpoint.

    A PNG file that is there may be replaced, and an empty file; nothing else.
    """
    path, near = Path(out), None
    try:
        trouble = _lost(path, [given for given in inputs if given is not None])
        if not trouble and path.suffix.lower() != ".png":
            trouble, near = (
                "does not end in .png, and a PNG file is written",
                f"{path.parent / (path.stem or 'samples')}.png",
            )
        trouble = trouble or unwritable(path.parent)
    except OSError as error:
        trouble = f"cannot be written: {error.strerror}"
    if trouble:
        raise ConfigError(f"{out} {trouble}", where=where, nearest=near)


def check_directory(directory: str | Path, where: str = "--out") -> None:
    """ConfigError unless files can be written in ``directory``, which need not be there yet."""
    trouble = unwritable(Path(directory))
    if trouble:
        raise ConfigError(f"{directory} {trouble}", where=where)


def check_there(path: str | None, where: str) -> None:
    """ConfigError for a path that is given and leads nowhere."""
    if path is not None and not os.path.exists(path):
        raise ConfigError(f"{path} is not there", where=where)


def existing(path: Path) -> Path:
    """The path itself, or the nearest directory above it that is there."""
    return next(place for place in (path, *path.parents) if os.path.lexists(place))


def unwritable(directory: Path) -> str | None:
    """Why no file can be written in a directory that is there or is made first; None where one can."""
    try:
        place = existing(directory)
        if not place.is_dir():
            return f"cannot be written: {place} is no directory"
        with tempfile.TemporaryFile(dir=place) as probe:
            probe.write(_PNG)
    except OSError as error:
        return f"cannot be written: {error.strerror}"
    return None


def _lost(path: Path, inputs: list[str]) -> str | None:
    """What writing a picture to ``path`` would destroy; None where it is nothing but another picture."""
    for given in inputs:
        if os.path.exists(path) and os.path.exists(given) and os.path.samefile(path, given):
            return f"is the input {given}: it would be replaced"
    for parent in Path(os.path.realpath(path)).parents:
        beside = parent.iterdir() if parent.name == "checkpoints" and parent.is_dir() else ()
        if _is_checkpoint(parent) or any(map(_is_checkpoint, beside)):
            return f"lies in {parent}, among the files of checkpoints"
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not path.is_file():
        return "is there and is no file"
    if not os.access(path, os.W_OK):
        return "is there and cannot be written"
    with open(path, "rb") as handle:
        return None if handle.read(len(_PNG)) in (_PNG, b"") else "is there and is no PNG file: it would be replaced"


def _is_checkpoint(directory: Path) -> bool:
    """Whether it holds weights and their manifest: a checkpoint, or a tokenizer."""
    return (directory / "manifest.json").is_file() and any(directory.glob("*.safetensors"))
