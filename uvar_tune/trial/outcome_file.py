"""How an attempt ended, on disk before anybody is told: `ended.json` in the trial's directory.

A report can be lost with the process that carries it; what lies in the directory is found by this driver or by the next one,
which then tells it without running anything again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from uvar_tune.io.atomic import write_text_atomic
from uvar_tune.tracking.metrics_log import MetricsLog

INTERRUPTION = (
    "interrupted"  # the outcome of an attempt that was asked to end: it is not written down, the trial goes on later
)
LOST = "the process that drives the trial was lost"  # the reason of an attempt of which nothing is known
_FILE, _CRASH = "ended.json", "crashed.json"
_MAX_BYTES = 2**24  # what we write ourselves is far smaller


def interrupted(recorder: MetricsLog | None, images: int) -> dict[str, Any]:
    """The result of an attempt that saved a checkpoint after ``images`` images and ends, as it was asked to; rank 0 says so."""
    if recorder is not None:
        recorder.event("log", text=f"saved at {images:,} images")
    return {"outcome": INTERRUPTION, "reason": "it was asked to end", "images": images}


def write_outcome(directory: str | Path, seeds: dict[str, int], result: dict[str, Any]) -> None:
    """Rank 0's last act. NaN cannot be written: it never becomes a score."""
    _write(Path(directory) / _FILE, {"seeds": seeds, "result": result})


def write_crash(directory: str | Path, attempt: int, reason: str) -> None:
    """Why an attempt ended from outside, by the process that drives it."""
    _write(Path(directory) / _CRASH, {"attempt": attempt, "reason": reason})


def read_crash(directory: str | Path, attempt: int) -> dict[str, Any] | None:
    """The crash of this very attempt as a result; None where none was written."""
    kept = _read(Path(directory) / _CRASH)
    reason = kept.get("reason") if kept.get("attempt") == attempt else None
    return {"outcome": "crashed", "reason": reason} if isinstance(reason, str) else None


def read_outcome(directory: str | Path, seeds: dict[str, int]) -> dict[str, Any] | None:
    """The result of an attempt that ran with these seeds; None while there is none."""
    kept = _read(Path(directory) / _FILE)
    result = kept.get("result") if kept.get("seeds") == seeds else None
    return result if isinstance(result, dict) and isinstance(result.get("outcome"), str) else None


def seeds_behind(directory: str | Path) -> dict[str, int]:
    """The seeds of the attempt that ended there; {} while there is none."""
    seeds = _read(Path(directory) / _FILE).get("seeds")
    return seeds if isinstance(seeds, dict) else {}


def _write(path: Path, content: dict[str, Any]) -> None:
    write_text_atomic(path, json.dumps(content, allow_nan=False))


def _read(path: Path) -> dict[str, Any]:
    """What it holds; {} where it is not there, damaged or cannot be read: the attempt is then made again from its last
    checkpoint."""
    try:
        if not path.is_file() or path.stat().st_size > _MAX_BYTES:
            return {}
        kept = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return kept if isinstance(kept, dict) else {}
