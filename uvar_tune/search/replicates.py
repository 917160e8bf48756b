"""Replicates: named configurations (arms), each under several training seeds, in Optuna studies of their own.

These are `NAME/noise`, `NAME/inference` and `NAME/confirm`, never `NAME`: the sampler sees search trials only. Training seeds
depend on the replicate's index alone, so arms are paired; sampling seeds are common. If an extended study has other arms, its
phase starts again on fresh seeds as `NAME/confirm-2`; earlier results are kept. Replicates come round by round (every arm
once, then every arm again), so that an interrupted phase already holds pairs.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import optuna
from optuna.trial import TrialState

from uvar_tune import seeds
from uvar_tune.analysis.results import Replicate
from uvar_tune.config.schema import Config
from uvar_tune.search._optuna_compat import reopen_trial
from uvar_tune.search.attempts import PURPOSES, Attempt, check_pruned, crash_record, final_outcome, is_retried
from uvar_tune.search.objectives import directions
from uvar_tune.search.storage import open_storage, open_study, study_trials
from uvar_tune.specs import Proposal, TrialOutcome


class Replicates:
    """``arms`` × ``count`` replicates on a persistent storage; the runner uses it as it uses a `Search`.

    Args:
        config: of the study.
        storage_url: ``journal:PATH`` or an Optuna storage URL.
        phase: noise, inference or confirm.
        arms: name → values by dotted name that replace the configuration's. Stored at the first start.
        count: replicates of each arm.
        samplings: sets of evaluation seeds on which each network is scored; the first gives the value.
        checkpoints: arm → directory of a trial whose network is scored instead of training one.
    """

    def __init__(
        self,
        config: Config,
        storage_url: str,
        phase: str,
        arms: Mapping[str, Mapping[str, Any]],
        count: int,
        samplings: int = 1,
        checkpoints: Mapping[str, str] | None = None,
    ):
        self.storage, self.config = open_storage(storage_url), config
        plain = {name: dict(values) for name, values in arms.items()}
        self.phase = self.folder = _current_phase(self.storage, config.study.name, phase, plain)
        self._count, self._samplings, self._checkpoints = count, samplings, dict(checkpoints or {})
        name = f"{config.study.name}/{self.phase}"
        self.study = open_study(self.storage, name, directions(config)[:1], {"arms": plain})
        self.arms: dict[str, dict[str, Any]] = self.study.user_attrs["space"]["arms"]  # in the order of the first start
        self._study_id = self.storage.get_study_id_from_name(name)
        self.study.sampler = optuna.samplers.RandomSampler(seed=0)  # nothing is sampled
        self._running: dict[int, list[Attempt]] = {}

    def ask(self) -> Proposal | None:
        """The next attempt: an interrupted replicate, else a new one; None if all have been proposed."""
        trials = self.study.get_trials(deepcopy=False)
        for trial in trials:
            if not trial.state.is_finished() and trial.number not in self._running:
                return self._start(trial.number)
        return self._start(None) if len(trials) < len(self.arms) * self._count else None

    def report(self, number: int, images: int, value: float) -> bool:
        """Replicates are never stopped at a rung."""
        return False

    def complete(self, number: int, outcome: TrialOutcome, provenance: Mapping[str, Any] | None = None) -> None:
        """Record the scores of a running replicate; its value must be a finite number."""
        if outcome.value is None or not math.isfinite(outcome.value):
            raise ValueError(f"{self.phase} {number}: {outcome.value} is not a score")
        self._finish(
            number, TrialState.COMPLETE, outcome.value, {**outcome.attributes(), "provenance": dict(provenance or {})}
        )

    def prune(self, number: int, outcome: TrialOutcome, provenance: Mapping[str, Any] | None = None) -> None:
        """Record that a running replicate ended without a score for a reason of its own."""
        check_pruned(number, outcome)
        attributes = {**outcome.attributes(), "outcome": outcome.kind.value, "provenance": dict(provenance or {})}
        self._finish(number, TrialState.PRUNED, None, attributes)

    def crashed(self, number: int, outcome: TrialOutcome) -> bool:
        """Record a crash of a running replicate; True if it will be proposed again, False if it has now failed."""
        attempts = self._running.pop(number)
        attempts[-1] |= {"ended": time.time(), **crash_record(outcome)}
        self._set(number, "attempts", attempts)
        if is_retried(attempts, self.config.run.max_attempts):
            return True
        self._finish(number, TrialState.FAIL, None, {**final_outcome(attempts, outcome), "outcome": "crashed"})
        return False

    def remaining(self) -> int:
        """How many replicates are still to be started."""
        return len(self.arms) * self._count - len(self.study.get_trials(deepcopy=False))

    def done(self) -> bool:
        """Whether every replicate has finished."""
        trials = self.study.get_trials(deepcopy=False)
        return len(trials) >= len(self.arms) * self._count and all(trial.state.is_finished() for trial in trials)

    def unfinished(self) -> list[int]:
        """Numbers of replicates that were started and have not finished."""
        return [trial.number for trial in self.study.get_trials(deepcopy=False) if not trial.state.is_finished()]

    def replicates(self) -> list[Replicate]:
        """Every started replicate, by number."""
        return _replicates(self.storage, f"{self.config.study.name}/{self.phase}")

    def configuration(self, proposal: Proposal) -> Config:
        """What the replicate runs."""
        return self.config.with_values(proposal.values)

    def checkpoint(self, proposal: Proposal) -> str | None:
        """The directory of the trial whose network is scored; None if one is trained."""
        return self._checkpoints.get(proposal.kind)

    def key(self, number: int) -> str:
        """The replicate's name in the records of MLflow."""
        return f"{self.phase}/{number}"

    def name(self, proposal: Proposal) -> str:
        """The replicate's name in messages."""
        arm, index = self._arm_and_index(proposal.number)
        return f"{self.phase} {arm} #{index}"

    def _arm_and_index(self, number: int) -> tuple[str, int]:
        index, arm = divmod(number, len(self.arms))
        return list(self.arms)[arm], index

    def _start(self, number: int | None) -> Proposal:
        trial = self.study.ask() if number is None else reopen_trial(self.study, self._trial_id(number))
        arm, index = self._arm_and_index(trial.number)
        attributes = self.storage.get_trial_user_attrs(self._trial_id(trial.number))
        purposes = [*PURPOSES, *(f"sampling-b{extra}" for extra in range(1, self._samplings))]
        seed = {purpose: seeds.derive(self.config.study.seed, self.phase, index, purpose) for purpose in purposes}
        attempts = [*attributes.get("attempts", []), {"started": time.time()}]
        for key, value in (
            ("kind", arm),
            ("arm", arm),
            ("replicate", index),
            ("seeds", seed),
            ("attempts", attempts),
            ("values", self.arms[arm]),
        ):
            self._set(trial.number, key, value)
        self._running[trial.number] = attempts
        return Proposal(trial.number, len(attempts), arm, self.arms[arm], seed)

    def _finish(self, number: int, state: TrialState, value: float | None, attributes: dict[str, Any]) -> None:
        attempts = self._running.pop(number, None)
        if attempts:
            attempts[-1].setdefault("ended", time.time())
            attributes = {**attributes, "attempts": attempts}
        for key, attribute in attributes.items():
            self._set(number, key, attribute)
        self.study.tell(number, value, state=state)

    def _trial_id(self, number: int) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self._study_id, number)

    def _set(self, number: int, key: str, value) -> None:
        self.storage.set_trial_user_attr(self._trial_id(number), key, value)


def load_replicates(storage, name: str, phase: str) -> list[Replicate]:
    """Every replicate of the latest start of a phase, by number; [] if it was never started."""
    names = [started for started, _ in _starts(storage, name, phase)]
    return _replicates(storage, f"{name}/{names[-1]}") if names else []


def _starts(storage, name: str, phase: str) -> Iterator[tuple[str, int]]:
    """(name of the phase, id of its Optuna study) of every start of a phase: confirm, confirm-2, …"""
    for count in itertools.count(1):
        own = phase if count == 1 else f"{phase}-{count}"
        try:
            yield own, storage.get_study_id_from_name(f"{name}/{own}")
        except KeyError:
            return


def _current_phase(storage, name: str, phase: str, arms: Mapping[str, Any]) -> str:
    """The latest start of a phase if it has these arms, else the name of a new start."""
    starts = list(_starts(storage, name, phase))
    if not starts:
        return phase
    latest, study_id = starts[-1]
    same = storage.get_study_user_attrs(study_id).get("space", {"arms": arms}) == {"arms": arms}
    return latest if same else f"{phase}-{len(starts) + 1}"


def _replicates(storage, study: str) -> list[Replicate]:
    return [
        Replicate(
            number=trial.number,
            arm=trial.user_attrs["arm"],
            index=trial.user_attrs["replicate"],
            state=trial.state.name,
            value=trial.values[0] if trial.state == TrialState.COMPLETE else None,
            attributes=dict(trial.user_attrs),
        )
        for trial in study_trials(storage, study)
        if "values" in trial.user_attrs
    ]
