"""Attempts at the trials of a search: which ones run, what all of them cost, and how a dead driver left them.

An attempt is one start of a trial, stored as ``{"started": s, "ended": s, "reason": …, "message": …, "images": …}``
(seconds since the epoch; training images of the newest checkpoint). It has no end while it runs, and a reason only if
it crashed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import optuna

from uvar_tune.search.budget import Ledger, Spent
from uvar_tune.specs import PRUNED_KINDS, CrashReason, OutcomeKind, TrialOutcome

PURPOSES = ("initialisation", "training", "sampling-a", "sampling-b")  # of the seeds of an attempt
_ATTEMPT_CHARACTERS, _TRIAL_CHARACTERS = 500, 2000  # of the stored message of a crash
Attempt = dict[str, Any]


@dataclasses.dataclass
class RunningTrial:
    """A trial with an attempt in flight, as last written to the storage.

    Attributes:
        trial: the handle for writing.
        attempts: all of them, the running one last.
        rungs: training images (as text) → {"value": score, "stop": whether the pruner stops the trial there}.
    """

    trial: optuna.Trial
    attempts: list[Attempt]
    rungs: dict[str, dict[str, Any]]


class RunningTrials:
    """The trials with an attempt in flight, by number, and the cost of all attempts.

    Args:
        clock: seconds since the epoch.
        last_active: trial number → when the attempt of a dead driver was last active (the time of its last log record).
            Without it such an attempt costs nothing.
    """

    def __init__(self, clock: Callable[[], float], last_active: Callable[[int], float | None]):
        self._clock, self._last_active = clock, last_active
        self._trials: dict[int, RunningTrial] = {}
        self._ledger = Ledger([])

    def __getitem__(self, number: int) -> RunningTrial:
        return self._trials[number]

    def __contains__(self, number: int) -> bool:
        return number in self._trials

    def __iter__(self) -> Iterator[int]:
        return iter(self._trials)

    def __len__(self) -> int:
        return len(self._trials)

    def load(self, trials: Iterable[tuple[int, list[Attempt]]]) -> None:
        """Add the cost of the attempts of earlier drivers.

        Args:
            trials: (number, stored attempts) of every trial.
        """
        self._ledger = Ledger(
            span for number, attempts in trials for span in attempt_spans(self.closed(number, attempts))
        )

    def add(self, number: int, running: RunningTrial) -> None:
        """Add a trial whose last attempt has just started."""
        self._trials[number] = running

    def remove(self, number: int) -> None:
        """Remove a trial whose last attempt has ended."""
        del self._trials[number]

    def next_attempt(self, number: int, attempts: list[Attempt]) -> list[Attempt]:
        """The stored attempts and one that starts now."""
        return [*self.closed(number, attempts), {"started": self._clock()}]

    def end_attempt(self, number: int, **crash: str | int) -> list[Attempt]:
        """End the running attempt, unless it has ended, and add its cost; all attempts of the trial."""
        attempts = self._trials[number].attempts
        if "ended" not in attempts[-1]:
            attempts[-1] |= {"ended": self._clock(), **crash}
            others = (
                other.attempts[-1]["started"] for other in self._trials.values() if other.attempts is not attempts
            )
            self._ledger.end(attempts[-1]["started"], attempts[-1]["ended"], others)
        return attempts

    def closed(self, number: int, attempts: list[Attempt]) -> list[Attempt]:
        """The attempts of a dead driver, the last of which may lack its end."""
        if attempts and "ended" not in attempts[-1]:
            started = attempts[-1]["started"]
            return [*attempts[:-1], {**attempts[-1], "ended": max(started, self._last_active(number) or started)}]
        return list(attempts)

    def spent(self, gpus: float) -> Spent:
        """The cost of all attempts, the running ones up to now, each on ``gpus`` GPUs."""
        started = (running.attempts[-1]["started"] for running in self._trials.values())
        return self._ledger.cost(started, self._clock(), gpus)


def attempt_spans(attempts: Iterable[Attempt]) -> list[tuple[float, float]]:
    """(start, end) in seconds of the attempts that have ended."""
    return [(attempt["started"], attempt["ended"]) for attempt in attempts if "ended" in attempt]


def crash_record(outcome: TrialOutcome) -> dict[str, Any]:
    """What an attempt stores of its crash."""
    record = {"reason": outcome.reason.value, "message": outcome.description[:_ATTEMPT_CHARACTERS]}
    return {**record, "images": outcome.images} if outcome.images else record


def is_retried(attempts: Iterable[Attempt], max_attempts: int) -> bool:
    """Whether a trial that has just crashed is tried again.

    Attempts that ended without a crash do not count, nor do those that gained a checkpoint: on preemptible nodes a long
    trial may crash any number of times and still end.
    """
    counted = saved = 0
    for attempt in attempts:
        gained, saved = attempt.get("images", 0) > saved, max(saved, attempt.get("images", 0))
        counted += "reason" in attempt and not gained
    return counted < max_attempts


def final_outcome(attempts: Iterable[Attempt], last: TrialOutcome) -> dict[str, str]:
    """The attributes of a trial that is not tried again.

    If every crash was a node low on memory, the trial itself is too large: it ends as out_of_memory.
    """
    reasons = {attempt["reason"] for attempt in attempts if "reason" in attempt}
    kind = OutcomeKind.OUT_OF_MEMORY if reasons == {CrashReason.LOW_MEMORY.value} else OutcomeKind.CRASHED
    return {"outcome": kind.value, "reason": last.reason.value, "message": last.description[:_TRIAL_CHARACTERS]}


def check_pruned(number: int, outcome: TrialOutcome) -> None:
    """Raise ValueError unless the outcome is one that ends a trial as PRUNED."""
    if outcome.kind not in PRUNED_KINDS:
        kinds = ", ".join(sorted(kind.value for kind in PRUNED_KINDS))
        raise ValueError(f"trial {number}: outcome {outcome.kind.value!r} does not end a trial early (one of: {kinds})")
