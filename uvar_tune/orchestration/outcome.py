"""How an attempt ended, on disk before anybody is told: `ended.json` in the trial's directory.

A report can be lost with the process that carries it; what lies in the directory is found by this driver or by the next one,
which then tells it without running anything again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from uvar_tune.tracking.durable import write_durably

INTERRUPTION = "interrupted"  # the outcome of an attempt that was asked to end: it is not written down, the trial goes on later
LOST = "the process that drives the trial was lost"  # the reason of an attempt of which nothing is known
_FILE, _CRASH = "ended.json", "crashed.json"


def write_outcome(directory: str | Path, seeds: dict[str, int], result: dict[str, Any]) -> None:
    """Rank 0's last act. NaN cannot be written: it never becomes a score."""
    _write(Path(directory) / _FILE, {"seeds": seeds, "result": result})


def write_crash(directory: str | Path, attempt: int, reason: str) -> None:
    """Why an attempt ended from outside, by the process that drives it."""
    _write(Path(directory) / _CRASH, {"attempt": attempt, "reason": reason})


def read_crash(directory: str | Path, attempt: int) -> dict[str, Any] | None:
    """The crash of this very attempt as a result; None where none was written."""
    kept = _read(Path(directory) / _CRASH)
    return {"outcome": "crashed", "reason": kept["reason"]} if kept.get("attempt") == attempt else None


def read_outcome(directory: str | Path, seeds: dict[str, int]) -> dict[str, Any] | None:
    """The result of an attempt that ran with these seeds; None while there is none."""
    kept = _read(Path(directory) / _FILE)
    return kept["result"] if kept.get("seeds") == seeds else None


def _write(path: Path, content: dict[str, Any]) -> None:
    write_durably(path, json.dumps(content, allow_nan=False))


def _read(path: Path) -> dict[str, Any]:
    """What it holds; {} where it is not there or damaged: the attempt is then made again from its last checkpoint."""
    try:
        kept = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}
