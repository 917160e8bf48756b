"""Memory-mapped caches on a node's own disk: a shared file system serves them once a node, not once a step (`run.scratch`)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from uvar_tune.io.atomic import staged_path
from uvar_tune.io.locks import FileLock
from uvar_tune.io.manifest import remove_leftovers


def copy_to_local_disk(assets: dict[str, Any], scratch: str | None) -> dict[str, Any]:
    """``assets`` with token caches below ``scratch``, copied there by the first worker of the node that comes.

    Caches are named by the hash of what they were made from, so a copy that is there is the right one. Without ``scratch``
    everything is read where it lies.
    """
    if scratch is None:
        return assets
    place = Path(scratch).expanduser()
    place.mkdir(parents=True, exist_ok=True)
    return {
        **assets,
        "tokens": {split: str(_copied(Path(source), place)) for split, source in assets["tokens"].items()},
    }


def _copied(source: Path, place: Path) -> Path:
    copy = place / source.name
    with FileLock(place / f".{source.name}.lock"):
        if not copy.exists():
            remove_leftovers(place, source.name)
            staged = staged_path(copy)
            shutil.copytree(source, staged)
            staged.rename(copy)
    return copy
