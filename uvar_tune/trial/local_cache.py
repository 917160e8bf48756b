"""Memory-mapped caches on a node's own disk: a shared file system serves them once a node, not once a step
(`run.scratch`).
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from uvar_tune.io.atomic import staged_path
from uvar_tune.io.locks import FileLock
from uvar_tune.io.manifest import remove_leftovers
from uvar_tune.specs import Assets


def copy_to_local_disk(assets: Assets, scratch: str | None) -> Assets:
    """``assets`` with token caches below ``scratch``, copied there by the first worker of the node that comes.

    Caches are named by the hash of what they were made from, so a copy that is there is the right one. Without
    ``scratch`` everything is read where it lies.
    """
    if scratch is None:
        return assets
    place = Path(scratch).expanduser()
    place.mkdir(parents=True, exist_ok=True)
    tokens = {split: str(_copied(Path(source), place)) for split, source in assets.tokens.items()}
    return dataclasses.replace(assets, tokens=tokens)


def _copied(source: Path, place: Path) -> Path:
    copy = place / source.name
    with FileLock(place / f".{source.name}.lock"):
        if not copy.exists():
            remove_leftovers(place, source.name)
            staged = staged_path(copy)
            shutil.copytree(source, staged)
            staged.rename(copy)
    return copy
