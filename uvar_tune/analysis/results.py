"""What a study found, as plain data: what tables, reports and exports are made from (imports nothing heavy)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from uvar_tune.config.space import OF_LAMBDA_1

__all__ = ["BASELINE", "OF_LAMBDA_1", "StudyResults", "TrialResult"]

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
        objectives: objective → value, where COMPLETE; the first is ``value``.
        violations: constraint → by how much it is overstepped, at most 0 where it holds; {} without constraints.
        rungs: training images → value of the rung metric at that length.
        wall_sec: wall seconds of the last attempt before its first step (start-up) and from there on (work), and of the
            attempts before it (earlier).
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
    objectives: dict[str, float] = field(default_factory=dict)
    violations: dict[str, float] = field(default_factory=dict)
    rungs: dict[int, float] = field(default_factory=dict)
    wall_sec: dict[str, float] = field(default_factory=dict)

    @property
    def feasible(self) -> bool:
        """Whether every constraint holds, so far as the trial was measured."""
        return all(excess <= 0 for excess in self.violations.values())

    @property
    def broken(self) -> list[str]:
        """The constraints that the trial oversteps."""
        return [name for name, excess in self.violations.items() if excess > 0]


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
        further: the objectives beside the first → direction.
        pareto: numbers of the feasible trials that none beats in all objectives, best in the first one first; () with one.
        confirmed: arm of the phase `confirm` → {values: {replicate: value}, mean, points: {inference parameter → median of
            the values chosen}}; only what has a score.
        factorial: cell of the 2×2 (none, second, semantic, both) → its arm; {} before the phase `confirm`.
        rung_correlation: rows of `pruning.rung_correlation`.
        importances: evaluator → {parameter → share}; None where it has no answer (`study.importance`).
        idle_sec: wall seconds that places for a trial stood empty, of the most trials ever at work at once, while any was.
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
    further: dict[str, str] = field(default_factory=dict)
    pareto: tuple[int, ...] = ()
    confirmed: dict[str, dict[str, Any]] = field(default_factory=dict)
    factorial: dict[str, str] = field(default_factory=dict)
    rung_correlation: tuple[dict[str, Any], ...] = ()
    importances: dict[str, dict[str, float | None] | None] = field(default_factory=dict)
    idle_sec: float = 0.0

    def ranked(self) -> list[TrialResult]:
        """The trials with a score, the feasible before the others, best first; equal ones by number."""
        return list(self._ranked)

    @cached_property
    def _ranked(self) -> tuple[TrialResult, ...]:
        sign = 1 if self.direction == "minimize" else -1
        scored = [trial for trial in self.trials if trial.state == "COMPLETE" and trial.value is not None]
        return tuple(
            sorted(
                (trial for trial in scored if math.isfinite(trial.value)),
                key=lambda trial: (not trial.feasible, sign * trial.value, trial.number),
            )
        )

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
