"""Verification of the files of a folder: is each readable, and what is its content hash.

Decoding a large folder takes minutes, so the result is cached in the user's cache directory under the names, sizes and
times of the files. If that directory cannot be written, every process verifies the files itself.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, UnidentifiedImageError

from uvar_tune.errors import ConfigError
from uvar_tune.io.atomic import write_text_atomic
from uvar_tune.io.hashing import content_hash

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
_NAMED = 3  # corrupt files in a message
_MAX_BYTES, _BLOCK_BYTES = 2**29, 2**20  # of a file: 6 bytes for each of the most pixels of an image; read at once
_THREADS = min(8, os.cpu_count() or 1)

Files = Sequence[tuple[int, Path]]  # (label, path)
_Result = tuple[str, str | None]  # (SHA-256, None or the reason why the file cannot be read)


class CorruptImages(UserWarning):
    """Files were left out because they cannot be read."""


@dataclass(frozen=True)
class VerifiedFiles:
    """Readable files of a folder.

    Attributes:
        files: (label, path) of each.
        skipped: (path, reason) of the others.
        sha256: of labels, names and contents of ``files`` and of the recipe.
    """

    files: list[tuple[int, Path]]
    skipped: tuple[tuple[str, str], ...]
    sha256: str


def verify_images(
    directory: Path, files: Files, *, decode: Callable[[Path], Any], on_corrupt: str, recipe: str, cache_key: str = ""
) -> VerifiedFiles:
    """Decode and hash every file once.

    Args:
        directory: below which the files are; the hash depends on the paths relative to it, not on its own.
        files: (label, path).
        decode: raises one of `UNREADABLE` for a file that cannot be read.
        on_corrupt: `refuse` or `skip`.
        recipe: how the images are processed, part of the hash.
        cache_key: what ``decode`` depends on besides the file.

    Raises:
        ConfigError: corrupt files under `refuse`.
    """
    results = _cached_results(directory, files, cache_key, lambda: _verify([path for _, path in files], decode))
    skipped = tuple(
        (printable(path), reason) for (_, path), (_, reason) in zip(files, results, strict=True) if reason is not None
    )
    if skipped:
        named = "; ".join(f"{path} ({reason})" for path, reason in skipped[:_NAMED])
        ellipsis = "; …" if len(skipped) > _NAMED else ""
        message = f"{len(skipped)} of {len(files)} images cannot be read: {named}{ellipsis}"
        if on_corrupt == "refuse":
            raise ConfigError(f"{message}. Repair or remove them, or set data.on_corrupt to skip", where="data.path")
        warnings.warn(f"{message}. They are skipped", CorruptImages, stacklevel=2)
    digest, readable = hashlib.sha256(recipe.encode()), []
    for (label, path), (sha256, reason) in zip(files, results, strict=True):
        if reason is None:
            readable.append((label, path))
            digest.update(f"{label}/{path.relative_to(directory)}/{sha256}\n".encode(errors="surrogateescape"))
    return VerifiedFiles(readable, skipped, digest.hexdigest())


def printable(path: Path) -> str:
    """The path as text; bytes of a name that are not UTF-8 become `\\xNN`."""
    return str(path).encode(errors="surrogateescape").decode(errors="backslashreplace")


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Open a file that may be an image.

    Raises:
        ValueError: a device, a pipe or the like, which might never end, or a file that is too large.
    """

    def open_nonblocking(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NONBLOCK)

    with open(path, "rb", opener=open_nonblocking) as handle:
        status = os.fstat(handle.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file")
        if status.st_size > _MAX_BYTES:
            raise ValueError(f"{status.st_size:,} bytes, more than {_MAX_BYTES:,}")
        yield handle


def _verify(paths: Sequence[Path], decode: Callable[[Path], Any]) -> list[_Result]:
    def verify(path: Path) -> _Result:
        try:
            sha256 = _bounded_sha256(path)
            decode(path)
        except UNREADABLE as error:
            return "", f"{type(error).__name__}: {error}"
        return sha256, None

    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(verify, paths))


def _bounded_sha256(path: Path) -> str:
    digest, remaining = hashlib.sha256(), _MAX_BYTES
    with open_regular(path) as handle:
        while block := handle.read(_BLOCK_BYTES):
            digest.update(block)
            if (remaining := remaining - len(block)) < 0:
                raise ValueError(f"more than {_MAX_BYTES:,} bytes")
    return digest.hexdigest()


def _cached_results(
    directory: Path, files: Files, cache_key: str, verify: Callable[[], list[_Result]]
) -> list[_Result]:
    """Results of an earlier verification of the same names, sizes and times, else of ``verify``."""
    listing = [[str(path), *_size_and_time(path)] for _, path in files]
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = base / "uvar_tune" / "images" / f"{content_hash([str(directory.resolve()), cache_key, listing])}.json"
    try:
        return [(sha256, reason) for sha256, reason in json.loads(cache.read_text(encoding="utf-8"))]
    except (OSError, ValueError):
        results = verify()
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomic(cache, json.dumps(results))
    except OSError:
        pass  # a read-only home directory
    return results


def _size_and_time(path: Path) -> tuple[int, int]:
    """Size and time of the last change; (-1, -1) if there is no file, e.g. for a dangling link."""
    try:
        status = path.stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns
