"""How an attempt ended, on disk before anybody is told: `ended.json` in the trial's directory.

A report can be lost with the process that carries it; what lies in the directory is found by this driver or by the next one,
which then tells it without running anything again.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

_FILE, _CRASH = "ended.json", "crashed.json"


def write_outcome(directory: str | Path, seeds: dict[str, int], result: dict[str, Any]) -> None:
    """Rank 0's last act. NaN cannot be written: it never becomes a score."""
    _write(Path(directory) / _FILE, {"seeds": seeds, "result": result})


def write_crash(directory: str | Path, attempt: int, reason: str) -> None:
    """Why an attempt ended from outside, by the process that drives it."""
    _write(Path(directory) / _CRASH, {"attempt": attempt, "reason": reason})


def read_crash(directory: str | Path, attempt: int) -> dict[str, Any] | None:
    """The crash of this very attempt as a result; None where none was written."""
    path = Path(directory) / _CRASH
    kept = json.loads(path.read_text()) if path.exists() else {}
    return {"outcome": "crashed", "reason": kept["reason"]} if kept.get("attempt") == attempt else None


def read_outcome(directory: str | Path, seeds: dict[str, int]) -> dict[str, Any] | None:
    """The result of an attempt that ran with these seeds; None while there is none."""
    path = Path(directory) / _FILE
    if not path.exists():
        return None
    kept = json.loads(path.read_text())
    return kept["result"] if kept["seeds"] == seeds else None


def _write(path: Path, content: dict[str, Any]) -> None:
    staged = path.with_suffix(f".{os.getpid()}.tmp")  # two ranks may end at once
    staged.write_text(json.dumps(content, allow_nan=False))
    staged.replace(path)
