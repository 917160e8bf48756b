"""A small disk in memory for tests, and how to fill it."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def mounted(place: Path, options: str) -> Iterator[Path]:
    """A tmpfs at ``place``, which is made; skips, and says why, where mounting isn't permitted."""
    place.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("no small disk: there is no `mount` here")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no small disk: mounting isn't permitted here ({done.stderr.strip()})")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def fill(disk: Path, leave: int) -> Path:
    """A file that takes all room but ``leave`` bytes, in pages."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as handle:
        try:
            while True:
                handle.write(bytes(4096))
        except OSError:
            handle.truncate(max(0, handle.tell() - leave) // 4096 * 4096)
    return filler
