"""The search: proposes trials, and records their rung scores and outcomes.

States, parameters, scores and attempts of every trial are in the Optuna storage, written here and by the driver alone.
A trial keeps its number over all its attempts; a trial that a dead driver left RUNNING is proposed again, with the same
parameters, before any new one.

Outcomes: COMPLETE with a score · PRUNED with `outcome` stopped (at a rung), diverged, out_of_memory or infeasible, so
that the sampler avoids it · crash and preemption: the same trial again, then FAIL after `run.max_attempts` crashes, or
PRUNED as out_of_memory if every crash was a node low on memory.

Training seeds differ from trial to trial, so that the search does not fit one of them. A grid learns nothing from one
trial for the next: all its trials have the same training seeds, so they are paired with the baseline and with each
other, and the same grid under another `study.seed` is a replicate.

Trials of the study that other programs made: queued ones (`Study.enqueue_trial`, optuna-dashboard) are run first;
finished ones inform the sampler; running ones are left to their program. None of these but the queued ones is ranked or
counted.
"""

from __future__ import annotations

import bisect
import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from uvar_tune import seeds
from uvar_tune.analysis.results import BASELINE, QUEUED, SEARCH
from uvar_tune.config.schema import Config
from uvar_tune.config.space import baseline_point, grid_size, point, searched_entries
from uvar_tune.config.space_entry import SpaceEntry
from uvar_tune.errors import ConfigError
from uvar_tune.search import _optuna_compat as compat
from uvar_tune.search.attempts import (
    PURPOSES,
    RunningTrial,
    RunningTrials,
    check_pruned,
    crash_record,
    final_outcome,
    is_retried,
)
from uvar_tune.search.budget import Spent, exhausted
from uvar_tune.search.dashboard import SampleGrids, name_metrics
from uvar_tune.search.objectives import directions, violations
from uvar_tune.search.pruning import Rungs
from uvar_tune.search.queue import check_queued, enqueue_configured
from uvar_tune.search.samplers import make_sampler, prior_trials
from uvar_tune.search.storage import open_storage, open_study
from uvar_tune.search.warm_start import warm_start_trials
from uvar_tune.specs import OutcomeKind, Proposal, TrialOutcome

_LOG = logging.getLogger(__name__)


class Search:
    """A study's trials on a persistent Optuna storage.

    Not thread-safe. One driver has it and is the only writer, so its counters, read from the storage at the start, stay
    true.

    Args:
        config: of the study.
        storage_url: ``journal:PATH`` or an Optuna storage URL.
        clock: seconds since the epoch, for the start and end of attempts.
        last_active: trial number → when the attempt of a dead driver was last active (the time of its last log record),
            for the budgets. Without it such an attempt costs nothing.
        sub_study: a search of its own next to the study's, in the Optuna study `NAME/SUB_STUDY`.
        grids: attaches sample grids to the trials, for optuna-dashboard.
    """

    def __init__(
        self,
        config: Config,
        storage_url: str,
        *,
        clock: Callable[[], float] = time.time,
        last_active: Callable[[int], float | None] = lambda number: None,
        sub_study: str = "",
        grids: SampleGrids | None = None,
    ):
        self.config = config
        self.storage = open_storage(storage_url)
        space = {name: entry.model_dump(mode="json") for name, entry in config.space.items()}
        name = f"{config.study.name}/{sub_study}" if sub_study else config.study.name
        self.study = open_study(self.storage, name, directions(config), space)
        self._is_main, self._prepared, self._grids = not sub_study, False, grids
        self._prior: list[FrozenTrial] = []
        self._study_id = self.storage.get_study_id_from_name(name)
        self._rungs = Rungs(config, self.study, self.storage)
        self._entries = searched_entries(config)
        self._grid = config.study.sampler == "grid"
        self._total = min(config.study.trials, 1 + grid_size(config)) if self._grid else config.study.trials
        self._rung_metric = config.study.metrics.index(config.study.pruning_metric)
        self._running = RunningTrials(clock, last_active)
        self._load()

    def ask(self) -> Proposal | None:
        """The next attempt: an interrupted trial, else a queued one, else a new one.

        Returns:
            None if all have been proposed, if a budget is used up, or while the baseline still runs and the other
            trials need its scores; `stop_reason` says whether this is final.
        """
        self._prepare()
        while self._interrupted:
            number = self._interrupted[0]
            if not self._finish_stopped(number):
                return None if self.stop_reason() else self._start(self._reopen(self._interrupted.pop(0)))
            self._interrupted.pop(0)
        if self.stop_reason() or (self._last_number >= 0 and self._needs_baseline() and self._baseline is None):
            return None
        if self._last_number >= 0 and (queued := self._next_queued()) is not None:
            return self._start(queued)
        return self._start(self._create()) if self._counted < self._total else None

    def report(self, number: int, images: int, value: float) -> bool:
        """Record the score of a running trial at a rung.

        A score reported again, by an attempt that resumed from an earlier checkpoint, changes nothing and has the same
        answer. The baseline is never stopped.

        Args:
            number: of the trial.
            images: training images seen, one of `study.rungs`.
            value: of the rung metric.

        Returns:
            Whether the trial is to be stopped here, which the caller confirms with `prune`.
        """
        if images not in self.config.study.rungs:
            raise ValueError(f"trial {number}: {images} images are no rung of {list(self.config.study.rungs)}")
        running = self._running[number]
        rung = running.rungs.get(str(images))
        if rung is None:
            stop = self._rungs.report(running.trial, images, _finite(number, value)) and number > 0
            rung = running.rungs[str(images)] = {"value": float(value), "stop": stop}
            running.trial.set_user_attr("rungs", running.rungs)
        return rung["stop"]

    def complete(self, number: int, outcome: TrialOutcome, provenance: Mapping[str, Any] | None = None) -> None:
        """Record the scores of a running trial.

        Args:
            number: of the trial.
            outcome: of its attempt; further metrics and constraints are read from its scores and costs.
            provenance: commit, versions, machine.

        Raises:
            ValueError: a value is not a finite number, or a metric that the study names is missing.
        """
        attributes = outcome.attributes()
        measured = {
            **{name: value for name, value in attributes.items() if isinstance(value, (int, float))},
            **outcome.scores,
        }
        study = self.config.study
        missing = [name for name in (*study.further_metrics, *study.constraints) if name not in measured]
        if missing:
            raise ValueError(f"trial {number}: its scores lack {', '.join(missing)}")
        values = [_finite(number, outcome.value), *(_finite(number, measured[name]) for name in study.further_metrics)]
        if number == 0:
            self._baseline = measured
        if study.constraints:
            excesses = violations(self.config, measured, self._baseline or {})
            for key, excess in excesses.items():
                self._running[number].trial.set_constraint(key, _finite(number, excess))
            compat.set_legacy_constraints(self._running[number].trial, list(excesses.values()))
        self._finish(number, TrialState.COMPLETE, values, {**attributes, "provenance": dict(provenance or {})})

    def prune(self, number: int, outcome: TrialOutcome, provenance: Mapping[str, Any] | None = None) -> None:
        """Record that a running trial ended without a score for a reason of its own, one of `PRUNED_KINDS`.

        Args:
            number: of the trial.
            outcome: of its attempt.
            provenance: commit, versions, machine.
        """
        check_pruned(number, outcome)
        attributes = {**outcome.attributes(), "outcome": outcome.kind.value, "provenance": dict(provenance or {})}
        self._finish(number, TrialState.PRUNED, None, attributes)

    def crashed(self, number: int, outcome: TrialOutcome) -> bool:
        """Record a crash of a running trial; True if the trial will be proposed again, False if it has now failed."""
        attempts = self._running.end_attempt(number, **crash_record(outcome))
        if is_retried(attempts, self.config.run.max_attempts):
            self._running[number].trial.set_user_attr("attempts", attempts)
            self._running.remove(number)
            bisect.insort(self._interrupted, number)
            return True
        attributes = final_outcome(attempts, outcome)
        pruned = attributes["outcome"] == OutcomeKind.OUT_OF_MEMORY.value
        self._finish(number, TrialState.PRUNED if pruned else TrialState.FAIL, None, attributes)
        return False

    def unfinished(self) -> list[int]:
        """Numbers of trials that were started and have not finished."""
        return sorted([*self._running, *self._interrupted])

    def remaining(self) -> int:
        """How many attempts are still to be proposed if no running one crashes."""
        queued = len(self._queued())
        counted = self._counted if self._grid else self._counted + queued
        return max(0, self._total - counted) + queued + len(self._interrupted)

    def done(self) -> bool:
        """Whether every trial has finished and none is queued."""
        return self._counted >= self._total and not self._running and not self._interrupted and not self._queued()

    def stop_reason(self) -> str | None:
        """Why no further attempt is proposed although trials are missing; None if there is no such reason."""
        if self._needs_baseline() and self._baseline_failed:
            return "the baseline has no score, and the other trials are measured against it"
        study = self.config.study
        if study.max_gpu_hours is None and study.max_wall_time is None:
            return None
        return exhausted(self.config, self.spent())

    def spent(self) -> Spent:
        """The cost of all attempts so far, the running ones up to now."""
        return self._running.spent(self.config.run.workers * self.config.run.gpus_per_worker)

    def _needs_baseline(self) -> bool:
        """Whether the other trials need the baseline's scores: shares of its gradient, or bounds relative to it."""
        return self.config.loss.lambda_unit == "share" or any(
            bound.relative for bound in self.config.study.constraints.values()
        )

    def _load(self) -> None:
        """Read the state of the study, once; from here on this object is the only one that changes it."""
        trials = self.study.get_trials(deepcopy=False)
        own = [trial for trial in trials if is_own(trial) and trial.state != TrialState.WAITING]
        self._last_number = len(trials) - 1
        self._counted = sum(self._counts(trial.user_attrs["kind"]) for trial in own)
        self._sampled = sum(trial.user_attrs["kind"] != QUEUED for trial in own)
        self._interrupted = [trial.number for trial in own if not trial.state.is_finished()]
        self._running.load((trial.number, trial.user_attrs.get("attempts", [])) for trial in own)
        self._baseline: dict[str, Any] | None = None
        first = own[0] if own and own[0].number == 0 else None
        self._baseline_failed = first is not None and first.state in (TrialState.PRUNED, TrialState.FAIL)
        if first is not None and first.state == TrialState.COMPLETE:
            self._baseline = {**first.user_attrs, **first.user_attrs.get("scores", {})}

    def _counts(self, kind: str) -> bool:
        """Whether a trial counts towards `study.trials`; of a grid, the queued ones do not."""
        return not (self._grid and kind == QUEUED)

    def _prepare(self) -> None:
        """What a driver does before its first proposal; reading a study does none of it."""
        self._rungs.reconcile(self.study, self._rung_metric)
        name_metrics(self.study, self.config.study.metrics)
        if self._last_number < 0 or self._prepared:
            return
        self._prepared = True
        self._check_baseline()
        if self._is_main:
            enqueue_configured(self.config, self.study)
            self._prior = prior_trials(warm_start_trials(self.config, self.storage), self._entries)

    def _check_baseline(self) -> None:
        """Make room for the baseline if trial 0 was queued; ConfigError if another program has run it."""
        first = self.study.get_trials(deepcopy=False)[0]
        if is_own(first):
            return
        if first.state != TrialState.WAITING:
            raise ConfigError(
                f"trial 0 of study {self.study.study_name!r} was made by another program, and trial 0 is the baseline; "
                "take another --study name",
                where="run.storage",
            )
        self.study.enqueue_trial(compat.queued_parameters(first))
        trial_id = self._trial_id(0)
        compat.set_queued_parameters(self.storage, trial_id, {})
        self.storage.set_trial_user_attr(trial_id, "kind", BASELINE)
        self.storage.set_trial_state_values(trial_id, TrialState.RUNNING)
        self._counted, self._sampled = self._counted + 1, self._sampled + 1
        bisect.insort(self._interrupted, 0)

    def _queued(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))

    def _next_queued(self) -> optuna.Trial | None:
        """The first queued trial that can be run, now RUNNING and ours; those that cannot be run end as FAIL."""
        for queued in self._queued():
            trial_id = self._trial_id(queued.number)
            parameters = compat.queued_parameters(queued)
            try:
                checked = check_queued(self.config, parameters, f"queued trial {queued.number}")
            except ConfigError as error:
                _LOG.warning("%s; it is not run", error)
                self.storage.set_trial_user_attr(trial_id, "message", str(error))
                self.storage.set_trial_state_values(trial_id, TrialState.FAIL)
                continue
            if checked != parameters:
                compat.set_queued_parameters(self.storage, trial_id, checked)
            self.storage.set_trial_user_attr(
                trial_id, "kind", QUEUED
            )  # before the state: a dead driver's trial is ours
            self.storage.set_trial_state_values(trial_id, TrialState.RUNNING)
            self._counted += self._counts(QUEUED)
            self._last_number = max(self._last_number, queued.number)
            return self._reopen(queued.number)
        return None

    def _create(self) -> optuna.Trial:
        """A new trial, whose proposal is still to be made."""
        kind = SEARCH if self._last_number >= 0 else BASELINE
        self.study.sampler = self._sampler(self._last_number + 1, self._sampled)
        trial = compat.create_marked_trial(self.study, self.storage, {"kind": kind})
        self._counted, self._sampled = self._counted + 1, self._sampled + 1
        for number in range(
            self._last_number + 1, trial.number
        ):  # created by a call whose answer was lost, or not ours
            other = self.storage.get_trial(self._trial_id(number))
            if is_own(other) and other.state == TrialState.RUNNING:
                self._counted, self._sampled = self._counted + 1, self._sampled + 1
                bisect.insort(self._interrupted, number)
        self._last_number = max(self._last_number, trial.number)
        return trial

    def _reopen(self, number: int) -> optuna.Trial:
        """The handle on a stored trial, with the sampler for its proposal if that is still to be made.

        The seed of a proposal is the trial's own, so a proposal that is made again is the same.
        """
        attributes = self.storage.get_trial_user_attrs(self._trial_id(number))
        if "values" in attributes:
            self._use_noop_sampler()
        else:
            index = None if attributes["kind"] == QUEUED else self._index(number)
            self.study.sampler = self._sampler(number, index)
        compat.clear_trial_cache(self.study)
        return compat.reopen_trial(self.study, self._trial_id(number))

    def _sampler(self, number: int, index: int | None) -> optuna.samplers.BaseSampler:
        return make_sampler(self.config, number, self._entries, index=index, prior=self._prior)

    def _index(self, number: int) -> int:
        """The position of a trial among the sampled ones, which queued trials and those of other programs do not
        shift.
        """
        trials = self.study.get_trials(deepcopy=False)[:number]
        return sum(is_own(trial) and trial.user_attrs["kind"] != QUEUED for trial in trials)

    def _start(self, trial: optuna.Trial) -> Proposal:
        """Start an attempt at a trial, and make its proposal if it has none."""
        number, attributes = trial.number, self.storage.get_trial_user_attrs(self._trial_id(trial.number))
        attempts = self._running.next_attempt(number, attributes.get("attempts", []))
        if "values" not in attributes:
            study = self.config.study
            index = 0 if self._grid else number
            attributes = {
                "kind": attributes["kind"],
                "values": self._values(trial),
                "seeds": {purpose: seeds.derive(study.seed, "explore", index, purpose) for purpose in PURPOSES},
            }
            trial.set_user_attr("seeds", attributes["seeds"])
            trial.set_user_attr("attempts", attempts)
            trial.set_user_attr("values", attributes["values"])  # last: with it the proposal is complete
        else:
            trial.set_user_attr("attempts", attempts)
        self._running.add(number, RunningTrial(trial, attempts, dict(attributes.get("rungs", {}))))
        return Proposal(number, len(attempts), attributes["kind"], attributes["values"], attributes["seeds"])

    def _values(self, trial: optuna.Trial) -> dict[str, Any]:
        if trial.number == 0:
            return baseline_point(self.config)
        return point(self.config, lambda name, entry: _suggest(trial, name, entry))

    def _finish_stopped(self, number: int) -> bool:
        """End an interrupted trial that a rung had stopped just before the driver died; whether that was so."""
        trial_id = self._trial_id(number)
        attributes = self.storage.get_trial_user_attrs(trial_id)
        stopped = any(rung["stop"] for rung in attributes.get("rungs", {}).values())
        if stopped:
            self._use_noop_sampler()
            attempts = self._running.closed(number, attributes["attempts"])
            trial = compat.reopen_trial(self.study, trial_id)
            self._running.add(number, RunningTrial(trial, attempts, attributes["rungs"]))
            self.prune(number, TrialOutcome(kind=OutcomeKind.STOPPED))
        return stopped

    def _use_noop_sampler(self) -> None:
        """Reopening a trial makes Optuna draw for it; nothing of that is used."""
        self.study.sampler = optuna.samplers.RandomSampler(seed=0)

    def _finish(self, number: int, state: TrialState, values: list[float] | None, attributes: dict[str, Any]) -> None:
        attempts = self._running.end_attempt(number)
        trial = self._running[number].trial
        for key, value in {**attributes, "attempts": attempts}.items():
            trial.set_user_attr(key, value)
        if self._grids is not None:
            self._grids.attach(trial)
        self.study.tell(trial, values, state=state)
        self._rungs.finished(number, state, values[self._rung_metric] if values else None)
        self._baseline_failed = self._baseline_failed or (number == 0 and state != TrialState.COMPLETE)
        self._running.remove(number)

    def _trial_id(self, number: int) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self._study_id, number)


def is_own(trial: FrozenTrial) -> bool:
    """Whether a search made the trial, or took it from the queue; any other is another program's."""
    return "kind" in trial.user_attrs


def _suggest(trial: optuna.Trial, name: str, entry: SpaceEntry):
    if entry.type == "categorical":
        return trial.suggest_categorical(name, entry.choices)
    if entry.type == "int":
        return trial.suggest_int(name, int(entry.low), int(entry.high), log=entry.log)
    return trial.suggest_float(name, entry.low, entry.high, log=entry.log)


def _finite(number: int, value: float) -> float:
    """``value`` if it is a finite number: NaN and infinity never become a score."""
    if value is None or not math.isfinite(value):
        raise ValueError(f"trial {number}: {value} is not a score")
    return float(value)
