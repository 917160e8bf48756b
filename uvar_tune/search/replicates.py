"""Replicates: named configurations, each under several training seeds, in an Optuna study of their own.

They are stored in `NAME/noise` and `NAME/confirm`, never in `NAME`: the sampler sees search trials only. Training seeds
depend on the replicate alone, so that configurations are paired; sampling seeds are common. If the arms of a study have
changed, its phase starts again as `NAME/confirm-2` on fresh seeds, and the earlier results are kept. Replicates run
round by round (every arm once, then every arm again), so that an interrupted phase still holds pairs. A phase with a
`stop_rule` is sequential: an arm runs its next replicate once its last pair is complete and the rule has not stopped
it.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.trial import TrialState

from uvar_tune import seeds
from uvar_tune.analysis.noise import MIN_PAIRS
from uvar_tune.analysis.results import BASELINE, Replicate
from uvar_tune.analysis.sequential import SequentialDesign
from uvar_tune.config.schema import Config
from uvar_tune.errors import ConfigError
from uvar_tune.search._optuna_compat import reopen_trial
from uvar_tune.search.attempts import PURPOSES, check_pruned, crash_record, final_outcome, is_retried
from uvar_tune.search.dashboard import name_metrics
from uvar_tune.search.objectives import directions
from uvar_tune.search.storage import open_storage, open_study
from uvar_tune.specs import Proposal, TrialOutcome


@dataclass(frozen=True)
class StopRule:
    """Makes a phase sequential.

    Attributes:
        stopped: (all replicates, design) → the arms that need no further replicates.
        controls: arm → the arm that it is compared with, where that is not the baseline.
    """

    stopped: Callable[[Sequence[Replicate], SequentialDesign], set[str]]
    controls: Mapping[str, str] = field(default_factory=dict)


class Replicates:
    """``arms`` × ``count`` replicates on a persistent storage, with the interface of a search.

    Args:
        config: of the study.
        storage_url: of its storage.
        phase: noise, inference or confirm.
        arms: name → values by dotted name, on top of the configuration. Stored at the first start.
        count: replicates of each arm, at most.
        samplings: evaluation seeds on which each network is scored; the first score is the value.
        checkpoints: arm → directory of a trial whose network is scored as it is, instead of training one.
        stop_rule: which arms need no further replicates; None runs all of them.

    Raises:
        ConfigError: ``count`` differs from the maximum that was fixed when a sequential phase began.
    """

    def __init__(
        self,
        config: Config,
        storage_url: str,
        phase: str,
        arms: Mapping[str, Mapping[str, Any]],
        count: int,
        *,
        samplings: int = 1,
        checkpoints: Mapping[str, str] | None = None,
        stop_rule: StopRule | None = None,
    ):
        self.storage, self.config = open_storage(storage_url), config
        requested = {name: dict(values) for name, values in arms.items()}
        self.phase = self.folder = _phase_of(self.storage, config.study.name, phase, requested)
        self._count, self._samplings, self._checkpoints = count, samplings, dict(checkpoints or {})
        self._stop_rule, self._controls = stop_rule, dict(stop_rule.controls) if stop_rule else {}
        plan = {"arms": requested} if stop_rule is None else {"arms": requested, "max_pairs": count}
        name = f"{config.study.name}/{self.phase}"
        _check_max_pairs(self.storage, name, plan)
        self.study = open_study(self.storage, name, directions(config)[:1], plan)
        name_metrics(self.study, config.study.metrics[:1])
        self.arms: dict[str, dict[str, Any]] = self.study.user_attrs["space"]["arms"]  # in the order of the first start
        self._study_id = self.storage.get_study_id_from_name(name)
        self.study.sampler = optuna.samplers.RandomSampler(seed=0)  # nothing is sampled
        self._running: dict[int, list[dict[str, Any]]] = {}

    @property
    def design(self) -> SequentialDesign:
        """The maximum of pairs and the round of this confirmation."""
        return SequentialDesign(self._count, _round_number(self.phase))

    def ask(self) -> Proposal | None:
        """The next attempt: interrupted replicates first, then the next planned one; None if none can start now."""
        for trial in self.study.get_trials(deepcopy=False):
            if not trial.state.is_finished() and trial.number not in self._running:
                return self._start(trial.number)
        return self._start(None) if self._planned() else None

    def _planned(self) -> list[tuple[str, int]]:
        """(arm, index) of the replicates that may start now, in order."""
        replicates = self.replicates()
        started = {(replicate.arm, replicate.index) for replicate in replicates}
        scored = {(replicate.arm, replicate.index) for replicate in replicates if replicate.value is not None}
        stopped = self._stopped(replicates)
        return [
            (arm, index)
            for index in range(self._count)
            for arm in self.arms
            if (arm, index) not in started and arm not in stopped and self._may_start(arm, index, scored, stopped)
        ]

    def _may_start(self, arm: str, index: int, scored: set[tuple[str, int]], stopped: set[str]) -> bool:
        """In a sequential phase, whether the last pair has been looked at: of the arm, or of any arm that is compared
        with it.
        """
        if self._stop_rule is None or index < MIN_PAIRS:
            return True
        others = self._compared_with(arm) - stopped or {arm}
        return any({(other, index - 1), (self._control(other), index - 1)} <= scored for other in others)

    def _stopped(self, replicates: Sequence[Replicate]) -> set[str]:
        """Arms that need no further replicates; the baseline and a control do as long as an arm compared with it."""
        if self._stop_rule is None:
            return set()
        stopped = self._stop_rule.stopped(replicates, self.design)
        bases = {arm for arm in self.arms if self._compared_with(arm)}
        return stopped | {base for base in bases if self._compared_with(base) <= stopped}

    def _control(self, arm: str) -> str:
        """The arm that ``arm`` is compared with; itself for the baseline and controls."""
        return arm if arm == BASELINE or arm in self._controls.values() else self._controls.get(arm, BASELINE)

    def _compared_with(self, base: str) -> set[str]:
        """The arms that are compared with ``base``; of an arm that is no control none."""
        return {arm for arm in self.arms if arm != base and self._control(arm) == base}

    def report(self, number: int, images: int, value: float) -> bool:
        """Replicates are never stopped at a rung."""
        return False

    def complete(self, number: int, outcome: TrialOutcome, provenance: Mapping[str, Any] | None = None) -> None:
        """Record the scores of a running replicate; its value must be a finite number."""
        if outcome.value is None or not math.isfinite(outcome.value):
            raise ValueError(f"{self.phase} {number}: {outcome.value} is not a score")
        attributes = {**outcome.attributes(), "provenance": dict(provenance or {})}
        self._finish(number, TrialState.COMPLETE, outcome.value, attributes)

    def prune(self, number: int, outcome: TrialOutcome, provenance: Mapping[str, Any] | None = None) -> None:
        """Record that a running replicate ended without a score for a reason of its own (diverged, out_of_memory)."""
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
        """How many are still to be started, at most."""
        replicates = self.replicates()
        stopped = self._stopped(replicates)
        return sum(
            max(0, self._count - sum(replicate.arm == arm for replicate in replicates))
            for arm in self.arms
            if arm not in stopped
        )

    def done(self) -> bool:
        """Whether every replicate that is needed has finished."""
        trials = self.study.get_trials(deepcopy=False)
        return not self.remaining() and all(trial.state.is_finished() for trial in trials)

    def unfinished(self) -> list[int]:
        """Numbers of the replicates that have started and not finished."""
        return [trial.number for trial in self.study.get_trials(deepcopy=False) if not trial.state.is_finished()]

    def replicates(self) -> list[Replicate]:
        """Every replicate that has started, by number."""
        return _load(self.storage, f"{self.config.study.name}/{self.phase}")

    def configuration(self, proposal: Proposal) -> Config:
        """The configuration of a replicate."""
        return self.config.with_values(proposal.values)

    def checkpoint(self, proposal: Proposal) -> str | None:
        """The directory of the trial whose network is scored; None if a network is trained."""
        return self._checkpoints.get(proposal.kind)

    def key(self, number: int) -> str:
        """What identifies a replicate among all runs of the study."""
        return f"{self.phase}/{number}"

    def name(self, proposal: Proposal) -> str:
        """How a replicate is called in messages."""
        index = self.storage.get_trial_user_attrs(self._trial_id(proposal.number))["replicate"]
        return f"{self.phase} {proposal.kind} #{index}"

    def _start(self, number: int | None) -> Proposal:
        """Start an attempt at a replicate, or at the next planned one."""
        attributes = self.storage.get_trial_user_attrs(self._trial_id(number)) if number is not None else {}
        if "arm" in attributes:
            arm, replicate = attributes["arm"], attributes["replicate"]
        else:  # a new one, or one whose driver died before it was assigned
            arm, replicate = self._planned()[0]
        trial = self.study.ask() if number is None else reopen_trial(self.study, self._trial_id(number))
        purposes = [*PURPOSES, *(f"sampling-b{extra}" for extra in range(1, self._samplings))]
        seed = {purpose: seeds.derive(self.config.study.seed, self.phase, replicate, purpose) for purpose in purposes}
        attempts = [*attributes.get("attempts", []), {"started": time.time()}]
        for key, value in (
            ("kind", arm),
            ("arm", arm),
            ("replicate", replicate),
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


def _rounds(storage, name: str, phase: str) -> Iterator[tuple[str, int]]:
    """(phase, id of its Optuna study) of each round of a phase: confirm, confirm-2, …"""
    for count in itertools.count(1):
        own = phase if count == 1 else f"{phase}-{count}"
        try:
            yield own, storage.get_study_id_from_name(f"{name}/{own}")
        except KeyError:
            return


def _round_number(phase: str) -> int:
    """1 for `confirm`, 2 for `confirm-2`, …"""
    return int(phase.partition("-")[2] or 1)


def _phase_of(storage, name: str, phase: str, arms: Mapping[str, Any]) -> str:
    """The last round of a phase if it has these arms, else the name of a new round."""
    rounds = list(_rounds(storage, name, phase))
    if not rounds:
        return phase
    last, study_id = rounds[-1]
    same = storage.get_study_user_attrs(study_id).get("space", {"arms": arms})["arms"] == arms
    return last if same else f"{phase}-{len(rounds) + 1}"


def _check_max_pairs(storage, study: str, plan: Mapping[str, Any]) -> None:
    try:
        stored = storage.get_study_user_attrs(storage.get_study_id_from_name(study)).get("space", {})
    except KeyError:
        return
    fixed, requested = stored.get("max_pairs"), plan.get("max_pairs")
    if None not in (fixed, requested) and fixed != requested:
        raise ConfigError(
            f"{requested} replicates, but the maximum of {study!r} was fixed at {fixed} before its first look: "
            "a test with another maximum would not keep its error rate",
            where="study.confirm_replicates",
            nearest=str(fixed),
        )


def confirmation_design(storage, config: Config) -> SequentialDesign:
    """The design of the last round of the phase `confirm`, as it was fixed when the round began."""
    rounds = list(_rounds(storage, config.study.name, "confirm"))
    if not rounds:
        return SequentialDesign(config.study.confirm_replicates)
    phase, study_id = rounds[-1]
    stored = storage.get_study_user_attrs(study_id).get("space", {})
    return SequentialDesign(stored.get("max_pairs", config.study.confirm_replicates), _round_number(phase))


def load_replicates(storage, name: str, phase: str) -> list[Replicate]:
    """Every replicate of the last round of a phase, by number; [] if it has not begun."""
    rounds = [own for own, _ in _rounds(storage, name, phase)]
    return _load(storage, f"{name}/{rounds[-1]}") if rounds else []


def _load(storage, study: str) -> list[Replicate]:
    study_id, found = storage.get_study_id_from_name(study), []
    for trial in storage.get_all_trials(study_id, deepcopy=False):
        if "values" in trial.user_attrs:
            value = trial.values[0] if trial.state == TrialState.COMPLETE else None
            found.append(
                Replicate(
                    trial.number,
                    trial.user_attrs["arm"],
                    trial.user_attrs["replicate"],
                    trial.state.name,
                    value,
                    dict(trial.user_attrs),
                )
            )
    return found
