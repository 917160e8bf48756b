"""Listing of image folders DIRECTORY/CLASS/IMAGE: what is read, and a count of everything that is not."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from uvar_tune.data.verification import printable

# Files of Synology, QNAP, Windows and macOS; names that begin with a dot are ignored too (Jupyter, AppleDouble).
_CLUTTER = {
    "@eadir",
    "#recycle",
    "@recycle",
    "@tmp",
    "__macosx",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "$recycle.bin",
    "system volume information",
    "lost+found",
}
_NAMED = 8  # kinds of files in a note
NO_EXTENSION = "none"


@dataclass(frozen=True)
class Listing:
    """Image files of some classes.

    Attributes:
        files: (label, path), ordered by label and path.
        notes: one line for each kind of files that are not read, with counts and the setting that reads them.
    """

    files: list[tuple[int, Path]]
    notes: tuple[str, ...]


@dataclass
class _Counts:
    ignored: Counter = field(default_factory=Counter)
    nested: int = 0
    extensions: Counter = field(default_factory=Counter)


def class_folders(directory: Path) -> list[str]:
    """Names of the class folders, sorted as text; hidden folders and those of operating systems are none."""
    return sorted(entry.name for entry in directory.iterdir() if entry.is_dir() and not _is_clutter(entry.name))


def list_images(
    directory: Path, class_names: Sequence[str], *, formats: Collection[str], nested: bool = False
) -> Listing:
    """List the images of each class.

    Args:
        directory: holds a folder per class.
        class_names: the classes, in the order of their labels; a missing folder is an empty class.
        formats: file extensions to read, lower case without dot; `NO_EXTENSION` for files without one.
        nested: read the subfolders of a class too.
    """
    counts = _Counts()
    files = [
        (label, path)
        for label, name in enumerate(class_names)
        if (directory / name).is_dir()
        for path in sorted(_class_files(directory / name, set(formats), nested, counts))
    ]
    folders, loose = set(class_folders(directory)), 0
    for entry in directory.iterdir():
        if _is_clutter(entry.name):
            counts.ignored[_kind(entry.name)] += 1
        elif entry.name not in folders:
            loose += 1
    notes = _notes(counts)
    if loose:
        notes.append(f"outside the class folders, not read: {loose:,}")
    return Listing(files, tuple(f"{printable(directory)}: {note}" for note in notes))


def _class_files(folder: Path, formats: set[str], nested: bool, counts: _Counts) -> list[Path]:
    """Image files of one class; everything else is counted."""
    files, pending, visited = [], [folder], set()
    while pending:
        current = pending.pop()
        if (real := os.path.realpath(current)) in visited:  # a link to a parent folder
            continue
        visited.add(real)
        for entry in current.iterdir():
            extension = entry.suffix.lower().lstrip(".") or NO_EXTENSION
            is_folder = entry.is_dir()
            if _is_clutter(entry.name):
                counts.ignored[_kind(entry.name)] += 1
            elif extension in formats and not (is_folder and extension == NO_EXTENSION):
                files.append(entry)
            elif is_folder and nested:
                pending.append(entry)
            elif is_folder:
                counts.nested += sum(len(names) for _, _, names in os.walk(entry))
            else:
                counts.extensions[extension] += 1
    return files


def _notes(counts: _Counts) -> list[str]:
    notes = []
    if counts.ignored:
        notes.append(f"ignored {_enumerate(counts.ignored)}")
    if counts.nested:
        notes.append(f"files in subfolders of the classes, not read: {counts.nested:,} (data.nested: true reads them)")
    if counts.extensions:
        kinds = Counter(
            {"without extension" if kind == NO_EXTENSION else f".{kind}": n for kind, n in counts.extensions.items()}
        )
        notes.append(f"files of other formats, not read: {_enumerate(kinds)} (data.formats adds formats)")
    return notes


def _enumerate(counts: Counter) -> str:
    kinds = [f"{count:,} {printable(Path(kind))}" for kind, count in counts.most_common(_NAMED)]
    return ", ".join(kinds) + (", …" if len(counts) > _NAMED else "")


def _is_clutter(name: str) -> bool:
    return name.startswith(".") or name.lower() in _CLUTTER


def _kind(name: str) -> str:
    """The name under which an ignored entry is counted."""
    return "._* (AppleDouble)" if name.startswith("._") else name
