"""Replicates: named configurations, each under several training seeds, in an Optuna study of their own.

They lie in `NAME/noise` and `NAME/confirm`, never in `NAME`: the sampler sees search trials only. Training seeds depend on
the replicate alone, so that configurations are paired; sampling seeds are common. Where a study that was made longer has
other arms, its phase begins anew, as `NAME/confirm-2` on fresh seeds; what was found before is kept. Replicates come round by
round (every arm once, then every arm again), so that an interrupted phase still holds pairs.
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
from uvar_tune.search.objectives import directions
from uvar_tune.search.storage import open_storage, open_study
from uvar_tune.search.study import EARLY_ENDS
from uvar_tune.specs import Proposal, TrialOutcome

PURPOSES = ("initialisation", "training", "sampling-a", "sampling-b")


class Replicates:
    """``arms`` × ``count`` replicates on a persistent storage; the runner asks it and tells it as it does the search.

    Args:
        arms: name → values by dotted name, over the configuration. Stored at the first start.
        samplings: sampling seeds B on which each network is told; the first one is the value.
        checkpoints: arm → directory of a trial whose network is scored as it is, instead of training one.
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
        asked = {name: dict(values) for name, values in arms.items()}
        self.phase = self.folder = _phase_of(self.storage, config.study.name, phase, asked)
        self._count, self._samplings, self._checkpoints = count, samplings, dict(checkpoints or {})
        self.study = open_study(
            self.storage, f"{config.study.name}/{self.phase}", directions(config)[:1], {"arms": asked}
        )
        self.arms: dict[str, dict[str, Any]] = self.study.user_attrs["space"][
            "arms"
        ]  # in the order in which they were begun
        self._study_id = self.storage.get_study_id_from_name(f"{config.study.name}/{self.phase}")
        self.study.sampler = optuna.samplers.RandomSampler(seed=0)  # nothing is sampled
        self._handed_out: dict[int, list[dict[str, Any]]] = {}

    def ask(self) -> Proposal | None:
        """The next attempt: first what was interrupted, then the next of the plan; None when all is handed out."""
        trials = self.study.get_trials(deepcopy=False)
        for trial in trials:
            if not trial.state.is_finished() and trial.number not in self._handed_out:
                return self._begin(trial.number)
        return self._begin(None) if len(trials) < len(self.arms) * self._count else None

    def report(self, number: int, images: int, value: float) -> bool:
        """Replicates are never stopped at a rung."""
        return False

    def complete(self, number: int, value: float, details: dict[str, Any]) -> None:
        """Tell a score, a finite number."""
        if not math.isfinite(value):
            raise ValueError(f"{self.phase} {number}: {value} is not a score")
        self._end(number, TrialState.COMPLETE, value, details)

    def prune(self, number: int, outcome: str, details: dict[str, Any]) -> None:
        """Tell that a replicate ended without a score for a reason of its own (diverged, out_of_memory)."""
        assert outcome in EARLY_ENDS, outcome
        self._end(number, TrialState.PRUNED, None, {**details, "outcome": outcome})

    def crashed(self, number: int, outcome: TrialOutcome) -> bool:
        """Record that an attempt crashed; whether the replicate will be asked again (else it has failed)."""
        attempts, reason = self._handed_out.pop(number), outcome.reason.value
        attempts[-1] |= {"ended": time.time(), "reason": reason, "message": outcome.description[:500]}
        self._set(number, "attempts", attempts)
        if sum("reason" in attempt for attempt in attempts) < self.config.run.max_attempts:
            return True
        details = {"outcome": "crashed", "reason": reason, "message": outcome.description[:2000]}
        self._end(number, TrialState.FAIL, None, details)
        return False

    def left(self) -> int:
        """How many are still to be begun."""
        return len(self.arms) * self._count - len(self.study.get_trials(deepcopy=False))

    def done(self) -> bool:
        """Whether every replicate has finished."""
        trials = self.study.get_trials(deepcopy=False)
        return len(trials) >= len(self.arms) * self._count and all(trial.state.is_finished() for trial in trials)

    def unfinished(self) -> list[int]:
        return [trial.number for trial in self.study.get_trials(deepcopy=False) if not trial.state.is_finished()]

    def replicates(self) -> list[Replicate]:
        """Every replicate begun, by number."""
        return _load(self.storage, f"{self.config.study.name}/{self.phase}")

    def configuration(self, proposal: Proposal) -> Config:
        return self.config.with_values(proposal.values)

    def checkpoint(self, proposal: Proposal) -> str | None:
        """The trial's directory whose network is scored, None where one is trained."""
        return self._checkpoints.get(proposal.kind)

    def key(self, number: int) -> str:
        return f"{self.phase}/{number}"

    def name(self, proposal: Proposal) -> str:
        arm, replicate = self._place(proposal.number)
        return f"{self.phase} {arm} #{replicate}"

    def _place(self, number: int) -> tuple[str, int]:
        replicate, arm = divmod(number, len(self.arms))
        return list(self.arms)[arm], replicate

    def _begin(self, number: int | None) -> Proposal:
        trial = self.study.ask() if number is None else optuna.Trial(self.study, self._trial_id(number))
        arm, replicate = self._place(trial.number)
        attributes = self.storage.get_trial_user_attrs(self._trial_id(trial.number))
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
        self._handed_out[trial.number] = attempts
        return Proposal(trial.number, len(attempts), arm, self.arms[arm], seed)

    def _end(self, number: int, state: TrialState, value: float | None, details: dict[str, Any]) -> None:
        attempts = self._handed_out.pop(number, None)
        if attempts:
            attempts[-1].setdefault("ended", time.time())
            details = {**details, "attempts": attempts}
        for key, detail in details.items():
            self._set(number, key, detail)
        self.study.tell(number, value, state=state)

    def _trial_id(self, number: int) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self._study_id, number)

    def _set(self, number: int, key: str, value) -> None:
        self.storage.set_trial_user_attr(self._trial_id(number), key, value)


def _begun(storage, name: str, phase: str) -> Iterator[tuple[str, int]]:
    """(phase, id of its Optuna study) of each time that a phase was begun: confirm, confirm-2, …"""
    for count in itertools.count(1):
        own = phase if count == 1 else f"{phase}-{count}"
        try:
            yield own, storage.get_study_id_from_name(f"{name}/{own}")
        except KeyError:
            return


def _phase_of(storage, name: str, phase: str, arms: Mapping[str, Any]) -> str:
    """The phase as it was begun last, if it was with these arms; else the name of the one to begin."""
    begun = list(_begun(storage, name, phase))
    if not begun:
        return phase
    last, study_id = begun[-1]
    same = storage.get_study_user_attrs(study_id).get("space", {"arms": arms}) == {"arms": arms}
    return last if same else f"{phase}-{len(begun) + 1}"


def load_replicates(storage, name: str, phase: str) -> list[Replicate]:
    """Every replicate begun of a phase, the last time that it was begun, by number; [] where it has not been."""
    begun = [own for own, _ in _begun(storage, name, phase)]
    return _load(storage, f"{name}/{begun[-1]}") if begun else []


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
