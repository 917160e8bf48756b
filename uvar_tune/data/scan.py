"""One look at every file of a folder: is it readable, and what is its content hash.

Decoding a large folder takes minutes, so the result is remembered in the user's cache directory under the names, sizes
and times of the files; where that cannot be written, every process looks for itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from uvar_tune.errors import ConfigError

UNREADABLE = (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError, MemoryError)
_SHOWN = 3  # corrupt files named in a message

Files = Sequence[tuple[int, Path]]


class CorruptImages(UserWarning):
    """Files were left out because they cannot be read."""


def scan(place: Path, files: Files, *, check: Callable[[Path], Any], on_corrupt: str, threads: int,
         recipe: str) -> tuple[list[tuple[int, Path]], tuple[tuple[str, str], ...], str]:
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
    skipped = tuple((str(file), why) for (_, file), (_, why) in zip(files, looked, strict=True) if why is not None)
    if skipped:
        shown = "; ".join(f"{file} ({why})" for file, why in skipped[:_SHOWN])
        text = f"{len(skipped)} of {len(files)} images cannot be read: {shown}{'; …' if len(skipped) > _SHOWN else ''}"
        if on_corrupt == "refuse":
            raise ConfigError(f"{text}. Mend or remove them, or set data.on_corrupt to skip", where="data.path")
        warnings.warn(f"{text}. They are skipped", CorruptImages, stacklevel=2)
    digest, kept = hashlib.sha256(recipe.encode()), []
    for (label, file), (sha256, why) in zip(files, looked, strict=True):
        if why is None:
            kept.append((label, file))
            digest.update(f"{label}/{file.parent.name}/{file.name}/{sha256}\n".encode())
    return kept, skipped, digest.hexdigest()


def _look(paths: Sequence[Path], check: Callable[[Path], Any], threads: int) -> list[tuple[str, str | None]]:
    """(SHA-256, None or why it cannot be read) of each file."""
    def one(path: Path) -> tuple[str, str | None]:
        try:
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            check(path)
        except UNREADABLE as error:
            return "", f"{type(error).__name__}: {error}"
        return sha256, None

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(one, paths))


def _remembered(place: Path, files: Files, look: Callable[[], list[tuple[str, str | None]]]) -> list[tuple[str, str | None]]:
    stats = [file.stat() for _, file in files]
    listing = [[str(file), stat.st_size, stat.st_mtime_ns] for (_, file), stat in zip(files, stats, strict=True)]
    key = hashlib.sha256(json.dumps([str(place.resolve()), listing]).encode()).hexdigest()
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    remembered = base / "uvar_tune" / "images" / f"{key}.json"
    try:
        return [(sha256, why) for sha256, why in json.loads(remembered.read_text())]
    except (OSError, ValueError):
        looked = look()
    try:
        remembered.parent.mkdir(parents=True, exist_ok=True)
        staged = remembered.with_suffix(f".{uuid.uuid4().hex}.tmp")
        staged.write_text(json.dumps(looked))
        staged.replace(remembered)
    except OSError:
        pass  # a read-only home: every process looks for itself
    return looked
