"""How the time of a study was spent: training, evaluation, start-up, earlier attempts, idle places."""

from __future__ import annotations

import contextlib
import json
import statistics
from pathlib import Path
from typing import NamedTuple

from uvar_tune.analysis.results import StudyResults


class Row(NamedTuple):
    """One kind of time; None if a number does not apply or is unknown.

    Wall seconds count places: a place holds one trial at a time.
    """

    phase: str
    wall_sec: float | None
    cpu_sec: float | None
    cpu_sec_median: float | None


_WORK = ("training", "evaluation")
EARLIER, IDLE, ALL = "earlier attempts", "idle places", "all processes of all commands"


def costs(results: StudyResults) -> list[Row]:
    """Rows for the phases of the trials, idle places, and the CPU time of all processes of all commands."""
    cpu: dict[str, list[float]] = {}
    for trial in results.trials:
        for phase, seconds in trial.cpu_sec.items():
            cpu.setdefault(phase, []).append(seconds)
    wall = _wall(results)
    rows = [
        Row(
            phase,
            wall.get(phase),
            sum(cpu[phase]) if phase in cpu else None,
            statistics.median(cpu[phase]) if phase in cpu else None,
        )
        for phase in dict.fromkeys([*cpu, *wall])
    ]
    rows += [Row(IDLE, results.idle_sec, None, None)] if results.idle_sec else []
    record = results.directory / "cost.jsonl"
    commands = _records(record)
    total = sum(seconds for command in commands for key, seconds in command.items() if key != "time")
    return [*rows, Row(ALL, None, total, None)] if commands else rows


def _records(path: Path) -> list[dict[str, float]]:
    """The lines of cost.jsonl; one that a kill or a full disk has cut is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            records.append(json.loads(line))
    return records


def _wall(results: StudyResults) -> dict[str, float]:
    """Phase → wall seconds over all trials.

    The work of a trial is divided in proportion to its CPU seconds of training and evaluation; that of a trial without
    them (a stopped one) in proportion to those of all trials.
    """
    summed = {phase: sum(trial.cpu_sec.get(phase, 0.0) for trial in results.trials) for phase in _WORK}
    of_all = _shares(summed) or {"training": 1.0}
    found = dict.fromkeys(("start-up", *_WORK, EARLIER), 0.0)
    for trial in results.trials:
        for phase, share in (_shares(trial.cpu_sec) or of_all).items():
            found[phase] += share * trial.wall_sec.get("work", 0.0)
        found["start-up"] += trial.wall_sec.get("start-up", 0.0)
        found[EARLIER] += trial.wall_sec.get("earlier", 0.0)
    return {phase: seconds for phase, seconds in found.items() if seconds > 0}


def _shares(cpu_sec: dict[str, float]) -> dict[str, float]:
    work = {phase: cpu_sec.get(phase, 0.0) for phase in _WORK}
    whole = sum(work.values())
    return {phase: seconds / whole for phase, seconds in work.items()} if whole > 0 else {}
