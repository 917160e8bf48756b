"""How an attempt ended, on disk in the trial's directory before the driver records it.

A report that travels through Ray is lost with the process that carries it. The file is read by this driver, or by the
next one, which then records the outcome without running the attempt again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from uvar_tune.io.atomic import write_text_atomic
from uvar_tune.specs import OutcomeKind, TrialOutcome

_OUTCOME, _CRASH = "outcome.json", "crash.json"
_MAX_BYTES = 2**24  # far more than an outcome takes


def write_outcome(directory: str | Path, seeds: dict[str, int], outcome: TrialOutcome) -> None:
    """Write how an attempt with these seeds ended, as the last act of rank 0.

    Raises:
        ValueError: a score is NaN or infinite.
    """
    _write(Path(directory) / _OUTCOME, {"seeds": seeds, "outcome": outcome.to_dict()})


def write_crash(directory: str | Path, attempt: int, outcome: TrialOutcome) -> None:
    """Write why an attempt crashed, from the process that drives the trial."""
    _write(Path(directory) / _CRASH, {"attempt": attempt, "outcome": outcome.to_dict()})


def read_outcome(directory: str | Path, seeds: dict[str, int]) -> TrialOutcome | None:
    """The outcome of the attempt that ran with these seeds; None if there is none."""
    content = _read(Path(directory) / _OUTCOME)
    return _outcome(content) if content.get("seeds") == seeds else None


def read_crash(directory: str | Path, attempt: int) -> TrialOutcome | None:
    """The crash of this attempt; None if none was written."""
    content = _read(Path(directory) / _CRASH)
    outcome = _outcome(content) if content.get("attempt") == attempt else None
    return outcome if outcome is not None and outcome.kind is OutcomeKind.CRASHED else None


def stored_seeds(directory: str | Path) -> dict[str, int]:
    """The seeds of the attempt that ended in this directory; {} if none has."""
    seeds = _read(Path(directory) / _OUTCOME).get("seeds")
    return seeds if isinstance(seeds, dict) else {}


def _write(path: Path, content: dict[str, Any]) -> None:
    write_text_atomic(path, json.dumps(content, allow_nan=False))


def _outcome(content: dict[str, Any]) -> TrialOutcome | None:
    try:
        return TrialOutcome.from_dict(content.get("outcome"))
    except ValueError:
        return None


def _read(path: Path) -> dict[str, Any]:
    """The content; {} if the file is missing, damaged or unreadable: the attempt then resumes from its last
    checkpoint.
    """
    try:
        if not path.is_file() or path.stat().st_size > _MAX_BYTES:
            return {}
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
