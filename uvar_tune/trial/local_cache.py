"""Memory-mapped caches on a node's own disk: a shared file system serves them once a node, not once a step (`run.scratch`)."""

from __future__ import annotations

import fcntl
import shutil
import uuid
from pathlib import Path
from typing import Any


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
    with open(place / f".{source.name}.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not copy.exists():
            for left in place.glob(f".{source.name}.*.tmp"):  # of a copier that was killed: this one alone copies now
                shutil.rmtree(left, ignore_errors=True)
            staged = place / f".{source.name}.{uuid.uuid4().hex}.tmp"
            shutil.copytree(source, staged)
            staged.rename(copy)
    return copy
