"""Trials under Ray Tune: thin adapters between Tune and the search, and what happens at the start and end of an
attempt.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from ray import tune
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from uvar_tune import provenance
from uvar_tune.config.schema import Config
from uvar_tune.config.space import searched_inference_entries
from uvar_tune.console import LogFollower
from uvar_tune.errors import InfrastructureError, UvarError, causes
from uvar_tune.io.disk import disk_full_error
from uvar_tune.ray_backend.capacity import CapacityMonitor
from uvar_tune.ray_backend.graceful_stop import GracefulShutdown
from uvar_tune.ray_backend.prestart import WorkerPrestarter
from uvar_tune.ray_backend.trainer import RUNG, trainable
from uvar_tune.specs import Assets, CrashReason, OutcomeKind, Proposal, TrialOutcome, TrialSpec, crash, worker_config
from uvar_tune.study_dir import StudyDirectory
from uvar_tune.tracking import RunLogger
from uvar_tune.tracking.parameters import effective_parameters, run_parameters, score_parameters, source_tags
from uvar_tune.tracking.presentation import phase_of, run_name
from uvar_tune.training.checkpoint import newest_images
from uvar_tune.trial.outcome_file import read_crash, read_outcome
from uvar_tune.trial.trial import write_config

logger = logging.getLogger(__name__)

# The process that drives a trial only waits: it takes no CPU from the workers, and runs on the head node.
_DRIVER_RESOURCES = {"node:__internal_head__": 0.001}
_PROCESS_LOST = crash(None, "the process that drives the trial was lost", CrashReason.PROCESS_LOST)


class Work(Protocol):
    """A source of trials: a search, or the replicates of a phase."""

    phase: str
    folder: str

    def ask(self) -> Proposal | None:
        """The next attempt; None if there is none at present."""

    def report(self, number: int, images: int, value: float) -> bool:
        """Record the value of a rung; whether the trial stops there."""

    def complete(self, number: int, outcome: TrialOutcome, provenance: Mapping[str, Any] | None = None) -> None:
        """Record a score."""

    def prune(self, number: int, outcome: TrialOutcome, provenance: Mapping[str, Any] | None = None) -> None:
        """Record an early end."""

    def crashed(self, number: int, outcome: TrialOutcome) -> bool:
        """Record a crash; whether the trial is retried."""

    def remaining(self) -> int:
        """How many attempts are still to come."""

    def configuration(self, proposal: Proposal) -> Config:
        """The configuration of an attempt."""

    def checkpoint(self, proposal: Proposal) -> str | None:
        """The directory of a checkpoint that is scored without training."""

    def key(self, number: int) -> int | str:
        """The key of a trial's MLflow run."""

    def name(self, proposal: Proposal) -> str:
        """The name of a trial in log lines."""


class TuneRunner:
    """Runs trials under Tune; holds what all phases of a study share while Ray runs.

    Args:
        config: of the study.
        files: of the study.
        run_logger: records runs in MLflow.
        stop: ends Tune on a signal.
        follower: logs the progress of trials.
        assets: of the study.
    """

    def __init__(
        self,
        config: Config,
        files: StudyDirectory,
        run_logger: RunLogger,
        stop: GracefulShutdown,
        follower: LogFollower,
        assets: Assets,
    ):
        self.config, self.files, self.run_logger, self.assets = config, files, run_logger, assets
        self.stop, self.follower, self.prestarter = stop, follower, WorkerPrestarter()
        self._error: InfrastructureError | None = None
        self.provenance = {**provenance.origin(), "data_sha256": assets.data_sha256}

    @property
    def ray_directory(self) -> Path:
        """The directory of Ray's own files; nothing is read back from it."""
        return self.files.directory / "ray"

    def run(self, work: Work, concurrent: int) -> None:
        """Run the trials of ``work``, at most ``concurrent`` at once, until there are no more or a stop is requested.

        Raises:
            InfrastructureError: the disk is full, or the storage or all nodes that hold a trial are lost.
        """
        if self.stop.stop_requested:
            return
        self.prestarter = WorkerPrestarter()
        searcher = StudySearcher(work, concurrent, TrialCallbacks(self, work), lambda: self.stop.stop_requested)
        tuner = tune.Tuner(
            tune.with_resources(trainable, _DRIVER_RESOURCES),
            tune_config=tune.TuneConfig(search_alg=searcher, scheduler=RungStopper(searcher), num_samples=-1),
            run_config=tune.RunConfig(
                name="tune", storage_path=str(self.ray_directory), verbose=0, callbacks=[SilentReporter()]
            ),
        )
        with (
            _quiet_tune(),
            self.follower,
            self.prestarter,
            CapacityMonitor(self.config.run, self.give_up),
        ):
            try:
                self.stop.run_tune(tuner.fit)
            except Exception as error:
                if self._error is not None:  # with a full disk, Tune fails at its own files
                    raise self._error from None
                for cause in causes(error):
                    if isinstance(cause, UvarError):  # raised by one of our callbacks
                        raise cause from None
                raise
        if self._error is not None:
            raise self._error

    def give_up(self, error: InfrastructureError) -> None:
        """End Tune with this error. Trials in flight stay unfinished and resume with the same command."""
        self._error = self._error or error
        self.stop.end_tune()


@contextlib.contextmanager
def _quiet_tune() -> Iterator[None]:
    """Context without Tune's log messages: what Tune logs with a traceback it also raises or reports."""
    tune_logger = logging.getLogger("ray.tune")
    level = tune_logger.level
    tune_logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        tune_logger.setLevel(level)


class TrialCallbacks:
    """What happens at the start and at the end of an attempt."""

    def __init__(self, runner: TuneRunner, work: Work):
        self._runner, self._work = runner, work

    def spec(self, proposal: Proposal) -> TrialSpec:
        """What the attempt is to run."""
        runner, config = self._runner, self._work.configuration(proposal)
        return TrialSpec(
            config=worker_config(config),
            number=proposal.number,
            attempt=proposal.attempt,
            seeds=proposal.seeds,
            assets=runner.assets,
            started=time.time(),
            directory=str(self._directory(proposal)),
            baseline_directory=str(runner.files.trial(0)),
            score_only=self._work.checkpoint(proposal),
            inference_axes=searched_inference_entries(config),
            cache=str(runner.files.cache),
            run_name=f"{self._work.phase}-{proposal.number:05d}-{proposal.attempt}-{os.getpid()}",
            ray_directory=str(runner.ray_directory),
        )

    def stored_outcome(self, proposal: Proposal) -> TrialOutcome | None:
        """How the attempt ended, read from the trial's directory; None if nothing is there."""
        directory = self._directory(proposal)
        return read_outcome(directory, proposal.seeds) or read_crash(directory, proposal.attempt)

    def on_trial_start(self, proposal: Proposal) -> None:
        """Write the configuration, start the MLflow run and follow the metrics log."""
        runner, directory = self._runner, self._directory(proposal)
        runner.prestarter.on_trial_start(self._work.remaining())
        config = self._work.configuration(proposal)
        write_config(directory, config)
        key = self._work.key(proposal.number)
        title, phase = run_name(key, proposal.kind, proposal.values), phase_of(key)
        tags = {"uvar.kind": proposal.kind, "uvar.phase": phase, "uvar.attempt": str(proposal.attempt)}
        tags |= source_tags(runner.provenance)
        parameters = run_parameters(config.model_copy(update={"space": runner.config.space}), proposal.values)
        runner.run_logger.start_trial(key, directory, params=parameters, tags=tags, name=title, phase=phase)
        name = self._work.name(proposal)
        runner.follower.follow(name, directory / "metrics.jsonl", config.training.images)
        values = ", ".join(f"{key.split('.')[-1]}={_format(value)}" for key, value in proposal.values.items())
        attempt = f", attempt {proposal.attempt}" if proposal.attempt > 1 else ""
        logger.info(f"{name} ({proposal.kind}{attempt}): {values}")

    def on_trial_end(self, proposal: Proposal, outcome: TrialOutcome) -> None:
        """Record the outcome in the storage and in MLflow."""
        name = self._work.name(proposal)
        self._runner.follower.forget(name)
        if outcome.kind is OutcomeKind.CRASHED:
            return self._on_crash(name, proposal, outcome)
        if outcome.kind is OutcomeKind.COMPLETE:
            return self._on_complete(name, proposal, outcome)
        self._work.prune(proposal.number, outcome, self._runner.provenance)
        logger.info(f"{name}: {outcome.kind.value.replace('_', ' ')} ({outcome.message})")
        self._finish(proposal, "KILLED" if outcome.kind is OutcomeKind.STOPPED else "FAILED")

    def _on_complete(self, name: str, proposal: Proposal, outcome: TrialOutcome) -> None:
        self._work.complete(proposal.number, outcome, self._runner.provenance)
        logger.info(
            f"{name}: {self._runner.config.study.metric} {outcome.value:.4g} "
            f"at CFG {outcome.inference_parameters['inference.cfg_scale']:.3g} ({outcome.seconds:.0f} s, "
            f"{outcome.start_up_seconds:.0f} s of it before the first step)"
        )
        parameters = {
            **outcome.inference_parameters,
            **effective_parameters(outcome.effective_parameters),
            **score_parameters(outcome.protocol, proposal.seeds),
        }
        self._finish(proposal, "FINISHED", metrics=outcome.scores, params=parameters)

    def _on_crash(self, name: str, proposal: Proposal, outcome: TrialOutcome) -> None:
        """Have the trial retried, unless a stop was requested or the study cannot go on."""
        runner = self._runner
        if runner.stop.stop_requested:  # the trial resumes next time
            if outcome.reason is not CrashReason.PROCESS_LOST:
                logger.warning(f"{name}: no checkpoint was saved at the end: {outcome.description}")
            return
        full = outcome.message if outcome.reason is CrashReason.DISK_FULL else runner.files.free_space_error()
        if full:
            return runner.give_up(disk_full_error(runner.files.directory, full))
        if outcome.reason is CrashReason.INFRASTRUCTURE:
            return runner.give_up(InfrastructureError(f"{outcome.message}; the same command continues"))
        outcome = dataclasses.replace(outcome, images=newest_images(self._directory(proposal) / "checkpoints"))
        retried = self._work.crashed(proposal.number, outcome)
        logger.warning(
            f"{name}: attempt {proposal.attempt} crashed: {outcome.description}"
            + ("; it is tried again from its last checkpoint" if retried else "; given up")
        )
        if not retried:
            self._finish(proposal, "FAILED")

    def _finish(self, proposal: Proposal, status: str, **values: Any) -> None:
        self._runner.run_logger.finish_trial(self._work.key(proposal.number), status=status, **values)

    def _directory(self, proposal: Proposal) -> Path:
        return self._runner.files.directory / self._work.folder / f"{proposal.number:05d}"


def _format(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class _Stateless:
    """Tune pickles its components for a restore that never happens: nothing is kept."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class StudySearcher(_Stateless, Searcher):
    """Feeds Tune from a study's work.

    Args:
        work: the source of trials.
        concurrent: attempts at once, at most.
        callbacks: make specs; called at the start and at the end of each attempt.
        stop_requested: whether no further attempt is to start.
    """

    def __init__(self, work: Work, concurrent: int, callbacks: TrialCallbacks, stop_requested: Callable[[], bool]):
        super().__init__()
        self._work, self._concurrent = work, concurrent
        self._callbacks, self._stop_requested = callbacks, stop_requested
        self._live: dict[str, Proposal] = {}
        self._stopped: dict[str, TrialOutcome] = {}

    def set_search_properties(self, metric, mode, config, **spec) -> bool:
        """Metric and direction are the study's."""
        return True

    def suggest(self, trial_id: str):
        """The configuration of the next attempt; None to be asked again later."""
        if len(self._live) >= self._concurrent:
            return None
        while not self._stop_requested() and (proposal := self._work.ask()) is not None:
            self._callbacks.on_trial_start(proposal)
            outcome = self._callbacks.stored_outcome(proposal)  # of an attempt that had ended when its driver died
            if outcome is None:
                self._live[trial_id] = proposal
                return {"spec": self._callbacks.spec(proposal)}
            self._callbacks.on_trial_end(proposal, outcome)
        return None if self._live else Searcher.FINISHED

    def on_rung(self, trial_id: str, images: int, value: float) -> bool:
        """Record the value of a rung; whether the trial stops there."""
        stop = self._work.report(self._live[trial_id].number, images, value)
        if stop:
            self._stopped[trial_id] = TrialOutcome(
                kind=OutcomeKind.STOPPED, message=f"after {images:,} images", images=images, value=value
            )
        return stop

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Record how an attempt ended; its directory says how."""
        proposal = self._live.pop(trial_id, None)
        if proposal is None:
            return
        stopped = self._stopped.pop(trial_id, None)
        outcome = stopped or self._callbacks.stored_outcome(proposal) or _PROCESS_LOST
        self._callbacks.on_trial_end(proposal, outcome)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the Optuna storage holds everything."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: every start is a new Tuner for the missing trials."""


class RungStopper(_Stateless, FIFOScheduler):
    """Stops a trial if the search says so: the decision is made by Optuna's pruner and kept in its storage."""

    def __init__(self, searcher: StudySearcher):
        super().__init__()
        self._searcher = searcher

    def on_trial_result(self, tune_controller, trial, result: dict) -> str:
        """Tune's decision after a report of the trial."""
        if result.get(RUNG) is None:
            return TrialScheduler.CONTINUE
        rung = json.loads(result[RUNG])
        stop = self._searcher.on_rung(trial.trial_id, rung["images"], rung["value"])
        return TrialScheduler.STOP if stop else TrialScheduler.CONTINUE


class SilentReporter(_Stateless, TrialProgressCallback):
    """Replaces Tune's own lines about each trial, which it prints at any verbosity."""

    def log_result(self, *_, **__) -> None:
        """No line."""

    def on_trial_complete(self, *_, **__) -> None:
        """No line."""
