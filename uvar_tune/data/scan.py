"""One look at every file of a folder: is it readable, and what is its content hash.

Decoding a large folder takes minutes, so the result is remembered in the user's cache directory under the names, sizes
and times of the files; where that cannot be written, every process looks for itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, UnidentifiedImageError

from uvar_tune.errors import ConfigError
from uvar_tune.io.atomic import write_text_atomic

UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    UnidentifiedImageError,
    Image.DecompressionBombError,
    MemoryError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    struct.error,
)  # the last five from altered headers
_SHOWN = 3  # corrupt files named in a message
_MAX_BYTES, _BLOCK = 2**29, 2**20  # of a file: 6 for each of the most pixels that a picture may have; read at once

Files = Sequence[tuple[int, Path]]


class CorruptImages(UserWarning):
    """Files were left out because they cannot be read."""


def scan(
    place: Path, files: Files, *, check: Callable[[Path], Any], on_corrupt: str, threads: int, recipe: str
) -> tuple[list[tuple[int, Path]], tuple[tuple[str, str], ...], str]:
    """(readable files, (path, why) of the others, content hash of the readable ones).

    Args:
        files: (label, path).
        check: decodes a file, raising one of `UNREADABLE` where it cannot.
        on_corrupt: `refuse` or `skip`.
        recipe: what is done with the images, part of the hash.

    Raises:
        ConfigError: corrupt files under `refuse`.
    """
    looked = _remembered(place, files, lambda: _look([file for _, file in files], check, threads))
    skipped = tuple((shown(file), why) for (_, file), (_, why) in zip(files, looked, strict=True) if why is not None)
    if skipped:
        some = "; ".join(f"{file} ({why})" for file, why in skipped[:_SHOWN])
        text = f"{len(skipped)} of {len(files)} images cannot be read: {some}{'; …' if len(skipped) > _SHOWN else ''}"
        if on_corrupt == "refuse":
            raise ConfigError(f"{text}. Mend or remove them, or set data.on_corrupt to skip", where="data.path")
        warnings.warn(f"{text}. They are skipped", CorruptImages, stacklevel=2)
    digest, kept = hashlib.sha256(recipe.encode()), []
    for (label, file), (sha256, why) in zip(files, looked, strict=True):
        if why is None:
            kept.append((label, file))
            digest.update(f"{label}/{file.parent.name}/{file.name}/{sha256}\n".encode(errors="surrogateescape"))
    return kept, skipped, digest.hexdigest()


def shown(path: Path) -> str:
    """The path as text that can be written anywhere: bytes of a name that are no UTF-8 become `\\xNN`."""
    return str(path).encode(errors="surrogateescape").decode(errors="backslashreplace")


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A file that may be a picture. ValueError for a device, a pipe or the like, which might never end, and a file too large."""

    def wait_for_no_writer(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NONBLOCK)

    with open(path, "rb", opener=wait_for_no_writer) as handle:
        found = os.fstat(handle.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("no regular file")
        if found.st_size > _MAX_BYTES:
            raise ValueError(f"{found.st_size:,} bytes, more than {_MAX_BYTES:,}")
        yield handle


def _look(paths: Sequence[Path], check: Callable[[Path], Any], threads: int) -> list[tuple[str, str | None]]:
    """(SHA-256, None or why it cannot be read) of each file."""

    def one(path: Path) -> tuple[str, str | None]:
        try:
            sha256 = _sha256(path)
            check(path)
        except UNREADABLE as error:
            return "", f"{type(error).__name__}: {error}"
        return sha256, None

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(one, paths))


def _sha256(path: Path) -> str:
    digest, left = hashlib.sha256(), _MAX_BYTES
    with opened(path) as handle:
        while block := handle.read(_BLOCK):
            digest.update(block)
            if (left := left - len(block)) < 0:
                raise ValueError(f"more than {_MAX_BYTES:,} bytes")
    return digest.hexdigest()


def _remembered(
    place: Path, files: Files, look: Callable[[], list[tuple[str, str | None]]]
) -> list[tuple[str, str | None]]:
    listing = [[str(file), *_size_and_time(file)] for _, file in files]
    key = hashlib.sha256(json.dumps([str(place.resolve()), listing]).encode()).hexdigest()
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    remembered = base / "uvar_tune" / "images" / f"{key}.json"
    try:
        return [(sha256, why) for sha256, why in json.loads(remembered.read_text())]
    except (OSError, ValueError):
        looked = look()
    try:
        remembered.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomic(remembered, json.dumps(looked))
    except OSError:
        pass  # a read-only home: every process looks for itself
    return looked


def _size_and_time(path: Path) -> tuple[int, int]:
    """(-1, -1) of a link to nowhere and the like."""
    try:
        found = path.stat()
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns
