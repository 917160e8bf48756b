"""Ray Tune's view of our search: it asks for attempts and hears how they stand and ended (thin adapters, no state of
their own).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Protocol

from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from uvar_tune.ray_backend.trainer import RUNG
from uvar_tune.specs import CrashReason, OutcomeKind, Proposal, TrialOutcome, TrialSpec, crash


class Work(Protocol):
    """What is to be run: the trials of a search, or the replicates of a plan."""

    def ask(self) -> Proposal | None: ...

    def report(self, number: int, images: int, value: float) -> bool: ...


_PROCESS_LOST = crash(None, "the process that drives the trial was lost", CrashReason.PROCESS_LOST)


class _Stateless:
    """Tune pickles what it is given, for a restore that is never made: there is nothing to keep."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class StudySearcher(_Stateless, Searcher):
    """Feeds Tune from ``work``, at most ``concurrent`` attempts at once.

    Args:
        spec: makes what an attempt runs from a proposal.
        started, ended: told of each attempt; ``ended`` gets the proposal and its result.
        outcome: how an attempt at the proposal ended, as it lies on disk; None while it does not.
        over: whether nothing more is to begin.
    """

    def __init__(
        self,
        work: Work,
        concurrent: int,
        spec: Callable[[Proposal], TrialSpec],
        started: Callable[[Proposal], None],
        ended: Callable[[Proposal, TrialOutcome], None],
        outcome: Callable[[Proposal], TrialOutcome | None],
        over: Callable[[], bool],
    ):
        super().__init__()
        self._over = over
        self._work, self._concurrent, self._spec = work, concurrent, spec
        self._started, self._ended, self._outcome = started, ended, outcome
        self._live: dict[str, Proposal] = {}
        self._stopped: dict[str, TrialOutcome] = {}

    def set_search_properties(self, metric, mode, config, **spec) -> bool:
        return True

    def suggest(self, trial_id: str):
        if len(self._live) >= self._concurrent:
            return None
        while not self._over() and (proposal := self._work.ask()) is not None:
            self._started(proposal)
            known = self._outcome(proposal)  # of an attempt that had ended when its driver died
            if known is None:
                self._live[trial_id] = proposal
                return {"spec": self._spec(proposal)}
            self._ended(proposal, known)
        return None if self._live else Searcher.FINISHED

    def reached(self, trial_id: str, rung: dict[str, Any]) -> bool:
        """Note what a trial scored at a rung; whether it stops here."""
        proposal = self._live[trial_id]
        stop = self._work.report(proposal.number, rung["images"], rung["value"])
        if stop:
            self._stopped[trial_id] = TrialOutcome(
                kind=OutcomeKind.STOPPED,
                message=f"after {rung['images']:,} images",
                images=rung["images"],
                value=rung["value"],
            )
        return stop

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        proposal = self._live.pop(trial_id, None)
        if proposal is None:
            return
        self._ended(
            proposal,
            self._stopped.pop(trial_id, None) or self._outcome(proposal) or _PROCESS_LOST,
        )

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the Optuna storage holds all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: every start is a new Tuner for the trials that are missing."""


class RungStopper(_Stateless, FIFOScheduler):
    """Stops a trial where the search says so; the decision is Optuna's pruner's and lies in its storage."""

    def __init__(self, searcher: StudySearcher):
        super().__init__()
        self._searcher = searcher

    def on_trial_result(self, tune_controller, trial, result: dict) -> str:
        rung = result.get(RUNG)
        stop = rung is not None and self._searcher.reached(trial.trial_id, json.loads(rung))
        return TrialScheduler.STOP if stop else TrialScheduler.CONTINUE


class Silent(_Stateless, TrialProgressCallback):
    """In the place of Tune's own lines on each trial, which it prints at any verbosity: the study tells of its trials
    itself.
    """

    def log_result(self, *_, **__) -> None: ...

    def on_trial_complete(self, *_, **__) -> None: ...
