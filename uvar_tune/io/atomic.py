"""Atomic writes: a file holds its old or its new content, also after a crash or a power failure."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Replace ``path`` by what the block writes to the temporary path it is given, flushed to disk on exit.

    If the block raises, ``path`` stays as it is and the temporary file is removed. Several processes may write the same
    path at once; one of them wins.

    Raises:
        OSError: the file cannot be written or flushed.
    """
    path = Path(path)
    staged = staged_path(path)
    try:
        yield staged
        fsync(staged)
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)
    fsync(path.parent)


def write_text_atomic(path: str | Path, text: str) -> None:
    """Replace ``path`` by ``text`` (UTF-8), as `atomic_path`."""
    with atomic_path(path) as staged:
        staged.write_text(text, encoding="utf-8")


def write_bytes_atomic(path: str | Path, content: bytes) -> None:
    """Replace ``path`` by ``content``, as `atomic_path`."""
    with atomic_path(path) as staged:
        staged.write_bytes(content)


def staged_path(path: Path) -> Path:
    """A temporary name next to ``path``, unique among processes, threads and machines."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def fsync(path: Path) -> None:
    """Flush a file or a directory to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
