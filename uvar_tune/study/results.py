"""What a study found, as plain data: what tables, reports and exports are made from (imports nothing heavy)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

BASELINE = "baseline"


@dataclass(frozen=True)
class TrialResult:
    """One trial, finished or not.

    Attributes:
        kind: baseline or search.
        state: Optuna's: COMPLETE, PRUNED, FAIL, RUNNING or WAITING.
        outcome: complete, diverged, out_of_memory, crashed; None while it runs.
        params: dotted name → the value that ran; what was profiled (the CFG scale) at the value chosen.
        value: of the objective, where COMPLETE.
        scores: metric → value at the chosen inference point, on sampling seeds B.
        profile: [{cfg_scale, seeds: a or b, metric → value}], in the order scored.
        seconds: wall time of the last attempt.
        cpu_sec: phase → CPU seconds of that attempt's worker.
        directory: config.yaml, metrics.jsonl, checkpoints/, samples/.
        made_by: commit, source hash, versions, machine.
        ran: λ by dotted name, where the space searches shares of the gradient and these moved them.
    """

    number: int
    kind: str
    state: str
    outcome: str | None
    params: dict[str, Any]
    value: float | None
    scores: dict[str, float]
    profile: list[dict[str, Any]]
    attempts: int
    seconds: float | None
    cpu_sec: dict[str, float]
    directory: Path
    seeds: dict[str, int]
    made_by: dict[str, Any]
    ran: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class StudyResults:
    """All trials of a study, by number, and what they are to be read with.

    Attributes:
        direction: minimize or maximize.
        space: dotted name → its entry (role, type, low, high, log, choices, …).
        protocol: under which all scores were made; empty until there is one.
        root: the study's directory.
        config: the configuration as nested sections, without the space.
        verdicts: arm of the phase `confirm` → its `Verdict` as plain data; unjudged: arm → why it has none.
        noise: `Noise` of the baseline as plain data, after the phase `noise`.
    """

    name: str
    objective: str
    direction: str
    trials: tuple[TrialResult, ...]
    space: dict[str, dict[str, Any]]
    protocol: dict[str, Any]
    seed: int
    root: Path
    config: dict[str, Any]
    verdicts: dict[str, dict[str, Any]] = field(default_factory=dict)
    unjudged: dict[str, str] = field(default_factory=dict)
    noise: dict[str, Any] | None = None

    def ranked(self) -> list[TrialResult]:
        """The trials with a score, best first; equal ones by number."""
        return list(self._ranked)

    @cached_property
    def _ranked(self) -> tuple[TrialResult, ...]:
        sign = 1 if self.direction == "minimize" else -1
        scored = [trial for trial in self.trials if trial.state == "COMPLETE" and trial.value is not None]
        return tuple(sorted((trial for trial in scored if math.isfinite(trial.value)),
                            key=lambda trial: (sign * trial.value, trial.number)))

    @property
    def best(self) -> TrialResult | None:
        """The first of `ranked`, which may be the baseline; None where nothing has a score."""
        return self._ranked[0] if self._ranked else None

    def verdict(self, trial: TrialResult) -> dict[str, Any] | None:
        """What the phase `confirm` says of a trial; None where it was not judged."""
        return self.verdicts.get(f"trial {trial.number}")

    @property
    def baseline(self) -> TrialResult | None:
        """The trial with λ1 = λ2 = 0, scored or not."""
        return next((trial for trial in self.trials if trial.kind == BASELINE), None)
