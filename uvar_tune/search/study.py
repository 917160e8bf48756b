"""The search: ask for a configuration, report rung values, tell what became of it.

One truth: states, parameters, values, profile, outcome and attempts of every trial live in the Optuna storage, written
here and by the driver alone. A trial keeps its number over all its attempts; a trial that a dead driver left RUNNING is
handed out again, with the same parameters, before any new one.

Outcomes: COMPLETE with a value · PRUNED with `outcome` stopped (at a rung), diverged, out_of_memory or infeasible, so
    that
the sampler stays away · crash and preemption: the same trial again, FAIL after `run.max_attempts`, PRUNED as
out_of_memory where each of them ended because its node was low on memory.

A search draws new training seeds for each trial, so that it does not settle on what one of them happens to favour. A
grid learns nothing from one trial for the next: all its trials have the same training seeds, so that they are paired,
the baseline among them, and the same grid under another `study.seed` is another replicate.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import optuna
from optuna.trial import TrialState

from uvar_tune import seeds
from uvar_tune.config.schema import Config
from uvar_tune.config.space import baseline_point, grid_size, point, searched_entries
from uvar_tune.config.space_entry import SpaceEntry
from uvar_tune.search.budget import Ledger, Spent, exhausted
from uvar_tune.search.objectives import directions, violations
from uvar_tune.search.pruning import Rungs
from uvar_tune.search.samplers import make_sampler
from uvar_tune.search.storage import open_storage, open_study
from uvar_tune.specs import PRUNED_KINDS, CrashReason, OutcomeKind, Proposal, TrialOutcome

STOPPED = OutcomeKind.STOPPED.value
EARLY_ENDS = tuple(sorted(kind.value for kind in PRUNED_KINDS))
_PURPOSES = ("initialisation", "training", "sampling-a", "sampling-b")


@dataclasses.dataclass
class _Live:
    """A trial that is handed out: what was last written of it."""

    trial: optuna.Trial
    attempts: list[dict[str, Any]]
    rungs: dict[str, dict[str, Any]]


class Search:
    """A study's trials on a persistent Optuna storage. Not thread-safe; one driver holds it and is the only writer, so
    what it counts in memory stays true to the storage, from which each start reads it.

    Args:
        clock: seconds since the epoch; when attempts begin and end.
        last_seen: trial number → when an attempt that a dead driver left was last seen to work (its record's time), for
            the budgets; without it such an attempt costs nothing.
        under: a search of its own beside the study's, in the Optuna study `NAME/UNDER`.
    """

    def __init__(
        self,
        config: Config,
        storage_url: str,
        *,
        clock: Callable[[], float] = time.time,
        last_seen: Callable[[int], float | None] = lambda number: None,
        under: str = "",
    ):
        self.config, self._clock, self._last_seen = config, clock, last_seen
        self.storage = open_storage(storage_url)
        space = {name: entry.model_dump(mode="json") for name, entry in config.space.items()}
        name = f"{config.study.name}/{under}" if under else config.study.name
        self.study = open_study(self.storage, name, directions(config), space)
        self._study_id = self.storage.get_study_id_from_name(name)
        self._rungs = Rungs(config, self.study, self.storage)
        self._entries = searched_entries(config)
        whole = 1 + grid_size(config) if config.study.sampler == "grid" else config.study.trials
        self._total = min(config.study.trials, whole)
        self._judged = config.study.metrics.index(config.study.pruning_metric)  # which objective the rungs score
        self._load()

    def ask(self) -> Proposal | None:
        """The next attempt: first what was interrupted, then a new trial.

        None when all have been handed out, when a budget is used up, and while what the others are measured against,
        the baseline, still runs; `halted` says which where nothing will change it.
        """
        self._rungs.reconcile(self.study, self._judged)
        while self._interrupted:
            number = self._interrupted[0]
            if not self._settle(number):
                return None if self.halted() else self._begin(self._interrupted.pop(0))
            self._interrupted.pop(0)
        if self._count >= self._total or self.halted():
            return None
        if self._count > 0 and self._awaits_baseline() and self._baseline is None:
            return None
        return self._begin(None)

    def report(self, number: int, images: int, value: float) -> bool:
        """A rung value of a trial that is handed out; True if it is to be stopped here (then tell `prune` "stopped").

        A value reported again, by an attempt that went back to a checkpoint, changes nothing and gets the same answer.
        The baseline is never stopped.
        """
        if images not in self.config.study.rungs:
            raise ValueError(f"trial {number}: {images} images are no rung of {list(self.config.study.rungs)}")
        live = self._live[number]
        told = live.rungs.get(str(images))
        if told is None:
            stop = self._rungs.report(live.trial, images, _score(number, value)) and number > 0
            told = live.rungs[str(images)] = {"value": float(value), "stop": stop}
            live.trial.set_user_attr("rungs", live.rungs)
        return told["stop"]

    def complete(self, number: int, value: float, details: dict[str, Any]) -> None:
        """Tell a score. ``details`` (scores, profile, seconds, chosen inference values) become user attributes; further
        objectives and constraints are read from its `scores` (costs beside them).

        Raises:
            ValueError: a value is not a finite number, or a score that was asked for is missing.
        """
        scores = details.get("scores", {})
        told = {**{key: detail for key, detail in details.items() if isinstance(detail, (int, float))}, **scores}
        missing = [
            name for name in (*self.config.study.further_metrics, *self.config.study.constraints) if name not in told
        ]
        if missing:
            raise ValueError(f"trial {number}: its scores lack {', '.join(missing)}")
        values = [_score(number, value), *(_score(number, told[name]) for name in self.config.study.further_metrics)]
        if number == 0:
            self._baseline = told
        if self.config.study.constraints:
            for key, excess in violations(self.config, told, self._baseline or {}).items():
                self._live[number].trial.set_constraint(key, _score(number, excess))
        self._tell_finished(number, TrialState.COMPLETE, values, details)

    def prune(self, number: int, outcome: str, details: dict[str, Any]) -> None:
        """Tell that a trial ended without a score for a reason of its own, one of `EARLY_ENDS`."""
        if outcome not in EARLY_ENDS:
            raise ValueError(f"trial {number}: {outcome!r} is no early end (one of: {', '.join(EARLY_ENDS)})")
        self._tell_finished(number, TrialState.PRUNED, None, {**details, "outcome": outcome})

    def crashed(self, number: int, outcome: TrialOutcome) -> bool:
        """Record that an attempt crashed; whether the trial will be asked again (else it has failed)."""
        live = self._live[number]
        self._end_attempt(live.attempts, reason=outcome.reason.value, message=outcome.description[:500])
        crashes = [attempt for attempt in live.attempts if "reason" in attempt]
        if len(crashes) < self.config.run.max_attempts:
            live.trial.set_user_attr("attempts", live.attempts)
            del self._live[number]
            bisect.insort(self._interrupted, number)
            return True
        details = {"reason": outcome.reason.value, "message": outcome.description[:2000]}
        if all(attempt["reason"] == CrashReason.LOW_MEMORY.value for attempt in crashes):
            self._tell_finished(number, TrialState.PRUNED, None, {"outcome": "out_of_memory", **details})
        else:
            self._tell_finished(number, TrialState.FAIL, None, {"outcome": "crashed", **details})
        return False

    def unfinished(self) -> list[int]:
        """Numbers of trials that were started and have not finished."""
        return sorted([*self._live, *self._interrupted])

    def left(self) -> int:
        """How many attempts are still to be handed out, if none of those under way crashes."""
        return self._total - self._count + len(self._interrupted)

    def done(self) -> bool:
        """Whether every trial of the total has finished."""
        return self._count >= self._total and not self._live and not self._interrupted

    def halted(self) -> str | None:
        """Why no further attempt is handed out although trials are missing; None while there is no such reason."""
        if self._awaits_baseline() and self._baseline_lost:
            return "the baseline has no score, and the other trials are measured against it"
        study = self.config.study
        if study.max_gpu_hours is None and study.max_wall_time is None:
            return None
        return exhausted(self.config, self.spent())

    def spent(self) -> Spent:
        """What the attempts so far cost, those in flight up to now."""
        gpus = self.config.run.workers * self.config.run.gpus_per_worker
        return self._ledger.cost((live.attempts[-1]["started"] for live in self._live.values()), self._clock(), gpus)

    def _awaits_baseline(self) -> bool:
        """Whether the other trials need the baseline's numbers: shares of its gradient, or bounds relative to it."""
        return self.config.loss.lambda_unit == "share" or any(
            bound.relative for bound in self.config.study.constraints.values()
        )

    def _load(self) -> None:
        """Read where the study stands (once; afterwards this object is the one that changes it)."""
        trials = self.study.get_trials(deepcopy=False)
        self._count, self._live = len(trials), {}
        self._interrupted = [trial.number for trial in trials if not trial.state.is_finished()]
        self._ledger = Ledger(
            span
            for trial in trials
            for span in _spans(self._closed(trial.number, trial.user_attrs.get("attempts", [])))
        )
        self._baseline: dict[str, Any] | None = None
        self._baseline_lost = bool(trials) and trials[0].state in (TrialState.PRUNED, TrialState.FAIL)
        if trials and trials[0].state == TrialState.COMPLETE:
            self._baseline = {**trials[0].user_attrs, **trials[0].user_attrs.get("scores", {})}

    def _closed(self, number: int, attempts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """``attempts`` of a driver that is no more, the last of which may lack its end."""
        if attempts and "ended" not in attempts[-1]:
            began = attempts[-1]["started"]
            return [*attempts[:-1], {**attempts[-1], "ended": max(began, self._last_seen(number) or began)}]
        return list(attempts)

    def _settle(self, number: int) -> bool:
        """End an interrupted trial that a rung had already stopped when the driver died; whether that was so."""
        trial_id = self._trial_id(number)
        attributes = self.storage.get_trial_user_attrs(trial_id)
        stopped = any(told["stop"] for told in attributes.get("rungs", {}).values())
        if stopped:
            self._quiet_sampler()
            attempts = self._closed(number, attributes["attempts"])
            self._live[number] = _Live(optuna.Trial(self.study, trial_id), attempts, attributes["rungs"])
            self.prune(number, STOPPED, {})
        return stopped

    def _begin(self, number: int | None) -> Proposal:
        """Start an attempt at trial ``number`` (None: a new one). A trial whose driver died within the proposal is
        proposed again: its seed is its own, so it gets the same values.
        """
        attributes = {} if number is None else self.storage.get_trial_user_attrs(self._trial_id(number))
        if "values" in attributes:
            self._quiet_sampler()
        else:
            self.study.sampler = make_sampler(self.config, self._count if number is None else number, self._entries)
        trial = self.study.ask() if number is None else optuna.Trial(self.study, self._trial_id(number))
        if number is None:  # one before it: made by a call whose answer was lost with the storage's connection
            for orphan in range(self._count, trial.number):
                bisect.insort(self._interrupted, orphan)
        self._count = max(self._count, trial.number + 1)
        attempts = [*self._closed(trial.number, attributes.get("attempts", [])), {"started": self._clock()}]
        if "values" not in attributes:
            study = self.config.study
            index = 0 if study.sampler == "grid" else trial.number
            attributes = {
                "kind": "search" if trial.number else "baseline",
                "values": self._values(trial),
                "seeds": {purpose: seeds.derive(study.seed, "explore", index, purpose) for purpose in _PURPOSES},
            }
            trial.set_user_attr("kind", attributes["kind"])
            trial.set_user_attr("seeds", attributes["seeds"])
            trial.set_user_attr("attempts", attempts)
            trial.set_user_attr("values", attributes["values"])  # last: with it the proposal is whole
        else:
            trial.set_user_attr("attempts", attempts)
        self._live[trial.number] = _Live(trial, attempts, dict(attributes.get("rungs", {})))
        return Proposal(trial.number, len(attempts), attributes["kind"], attributes["values"], attributes["seeds"])

    def _values(self, trial: optuna.Trial) -> dict[str, Any]:
        if trial.number == 0:
            return baseline_point(self.config)
        return point(self.config, lambda name, entry: _suggest(trial, name, entry))

    def _quiet_sampler(self) -> None:
        """Opening a trial again makes Optuna draw for it; nothing of that is used."""
        self.study.sampler = optuna.samplers.RandomSampler(seed=0)

    def _tell_finished(
        self, number: int, state: TrialState, values: list[float] | None, details: dict[str, Any]
    ) -> None:
        live = self._live[number]
        attempts = live.attempts
        if "ended" not in attempts[-1]:
            self._end_attempt(attempts)
        for key, detail in {**details, "attempts": attempts}.items():
            live.trial.set_user_attr(key, detail)
        self.study.tell(live.trial, values, state=state)
        self._rungs.finished(number, state, values[self._judged] if values else None)
        self._baseline_lost = self._baseline_lost or (number == 0 and state != TrialState.COMPLETE)
        del self._live[number]

    def _end_attempt(self, attempts: list[dict[str, Any]], **why: str) -> None:
        attempts[-1] |= {"ended": self._clock(), **why}
        others = (live.attempts[-1]["started"] for live in self._live.values() if live.attempts is not attempts)
        self._ledger.end(attempts[-1]["started"], attempts[-1]["ended"], others)

    def _trial_id(self, number: int) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self._study_id, number)


def _spans(attempts: list[dict[str, Any]]) -> list[tuple[float, float]]:
    return [(attempt["started"], attempt["ended"]) for attempt in attempts if "ended" in attempt]


def _suggest(trial: optuna.Trial, name: str, entry: SpaceEntry):
    if entry.type == "categorical":
        return trial.suggest_categorical(name, entry.choices)
    if entry.type == "int":
        return trial.suggest_int(name, int(entry.low), int(entry.high), log=entry.log)
    return trial.suggest_float(name, entry.low, entry.high, log=entry.log)


def _score(number: int, value: float) -> float:
    """``value`` if it is a finite number: NaN and infinity never become a score."""
    if not math.isfinite(value):
        raise ValueError(f"trial {number}: {value} is not a score")
    return float(value)
