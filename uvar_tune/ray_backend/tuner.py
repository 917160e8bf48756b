"""Running work through Tune: trials of the search or replicates of a phase, each told to storage, MLflow and the
user.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from uvar_tune import provenance
from uvar_tune.config.schema import Config
from uvar_tune.config.space import searched_inference_entries
from uvar_tune.console import LogFollower
from uvar_tune.errors import InfrastructureError, UvarError, causes
from uvar_tune.io.disk import disk_full_error
from uvar_tune.ray_backend.graceful_stop import GracefulShutdown
from uvar_tune.ray_backend.prestart import WorkerPrestarter
from uvar_tune.specs import Assets, CrashReason, OutcomeKind, Proposal, TrialOutcome, TrialSpec, worker_config
from uvar_tune.study_dir import StudyDirectory
from uvar_tune.tracking import MLflowTracker
from uvar_tune.tracking.parameters import effective_parameters, run_parameters, score_parameters
from uvar_tune.tracking.presentation import phase_of, run_name
from uvar_tune.trial.outcome_file import read_crash, read_outcome
from uvar_tune.trial.trial import write_config

logger = logging.getLogger(__name__)

# What drives a trial only waits: it takes no CPU from the workers, and sits where the study's own driver does.
ON_HEAD = {"node:__internal_head__": 0.001}


class TuneRunner:
    """One driver's hands: what all work of a study shares while Ray runs.

    Args:
        assets: what all trials of the study share.
    """

    def __init__(
        self,
        config: Config,
        files: StudyDirectory,
        sink: MLflowTracker,
        signals: GracefulShutdown,
        follower: LogFollower,
        assets: Assets,
    ):
        self.config, self.files, self.sink, self.assets = config, files, sink, assets
        self.signals, self.follower = signals, follower
        self._lost: InfrastructureError | None = None
        self.origin = {**provenance.origin(), "data_sha256": assets.data_sha256}

    def run(self, work, concurrent: int) -> None:
        """Run ``work`` until it hands out nothing more, or a signal ends it.

        Raises:
            InfrastructureError: there is no room to write any more, no storage, or no node that holds a trial.
        """
        if self.signals.asked.is_set():
            return
        from ray import tune

        from uvar_tune.ray_backend.capacity_monitor import CapacityMonitor
        from uvar_tune.ray_backend.searcher import RungStopper, Silent, StudySearcher
        from uvar_tune.ray_backend.trainer import trainable

        logging.getLogger("ray.tune").setLevel(
            logging.CRITICAL
        )  # what it logs with a traceback it also raises or tells
        hands, self.warm = TrialCallbacks(self, work), WorkerPrestarter()
        searcher = StudySearcher(
            work, concurrent, hands.spec, hands.started, hands.ended, hands.outcome, self.signals.asked.is_set
        )
        tuner = tune.Tuner(
            tune.with_resources(trainable, ON_HEAD),
            tune_config=tune.TuneConfig(search_alg=searcher, scheduler=RungStopper(searcher), num_samples=-1),
            run_config=tune.RunConfig(
                name="tune", storage_path=str(self.ray_directory), verbose=0, callbacks=[Silent()]
            ),
        )
        with self.follower, self.warm, CapacityMonitor(self.config, self.give_up):
            try:
                self.signals.running_tune(tuner.fit)
            except Exception as error:
                if self._lost is not None:  # where there is no room, Tune trips over its own files
                    raise self._lost from None
                for ours in causes(error):
                    if isinstance(ours, UvarError):  # for whose sake Tune raised
                        raise ours from None
                raise
        if self._lost is not None:
            raise self._lost

    def give_up(self, why: InfrastructureError) -> None:
        """What no trial can do without is gone: what is in flight stays as it is, and Tune ends."""
        self._lost = self._lost or why
        self.signals.end()

    @property
    def ray_directory(self) -> Path:
        return self.files.directory / "ray"  # Ray's own bookkeeping; nothing is read back from it


class TrialCallbacks:
    """What happens to one attempt of ``work``: its job, its start, its end."""

    def __init__(self, runner: TuneRunner, work):
        self._runner, self._work = runner, work
        self._config = runner.config

    def spec(self, proposal: Proposal) -> TrialSpec:
        """What the attempt runs."""
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

    def started(self, proposal: Proposal) -> None:
        self._runner.warm.began(self._work.remaining())
        directory, config = self._directory(proposal), self._work.configuration(proposal)
        write_config(directory, config)
        key = self._work.key(proposal.number)
        name, phase = run_name(key, proposal.kind, proposal.values), phase_of(key)
        tags = {"uvar.kind": proposal.kind, "uvar.phase": phase, "uvar.attempt": str(proposal.attempt)}
        parameters = run_parameters(config.model_copy(update={"space": self._config.space}), proposal.values)
        self._runner.sink.start_trial(key, directory, params=parameters, tags=tags, name=name, phase=phase)
        name = self._work.name(proposal)
        self._runner.follower.follow(name, directory / "metrics.jsonl", config.training.images)
        shown = ", ".join(f"{key.split('.')[-1]}={_short(value)}" for key, value in proposal.values.items())
        again = f", attempt {proposal.attempt}" if proposal.attempt > 1 else ""
        logger.info(f"{name} ({proposal.kind}{again}): {shown}")

    def outcome(self, proposal: Proposal) -> TrialOutcome | None:
        directory = self._directory(proposal)
        return read_outcome(directory, proposal.seeds) or read_crash(directory, proposal.attempt)

    def ended(self, proposal: Proposal, outcome: TrialOutcome) -> None:
        name = self._work.name(proposal)
        self._runner.follower.forget(name)
        if outcome.kind is OutcomeKind.CRASHED:
            return self._crashed(name, proposal, outcome)
        if outcome.kind is OutcomeKind.COMPLETE:
            self._work.complete(proposal.number, outcome, self._runner.origin)
            logger.info(
                f"{name}: {self._config.study.metric} {outcome.value:.4g} "
                f"at CFG {outcome.inference_parameters['inference.cfg_scale']:.3g} ({outcome.seconds:.0f} s, "
                f"{outcome.start_up_seconds:.0f} s of it before the first step)"
            )
            parameters = {
                **outcome.inference_parameters,
                **effective_parameters(outcome.effective_parameters),
                **score_parameters(outcome.protocol, proposal.seeds),
            }
            self._finish(proposal, "FINISHED", metrics=outcome.scores, params=parameters)
        else:
            self._work.prune(proposal.number, outcome, self._runner.origin)
            logger.info(f"{name}: {outcome.kind.value.replace('_', ' ')} ({outcome.message})")
            self._finish(proposal, "KILLED" if outcome.kind is OutcomeKind.STOPPED else "FAILED")

    def _crashed(self, name: str, proposal: Proposal, outcome: TrialOutcome) -> None:
        """Have the trial retried, unless the study was stopped or cannot go on."""
        runner = self._runner
        if runner.signals.asked.is_set():  # the study stops: the trial resumes next time
            if outcome.reason is not CrashReason.PROCESS_LOST:
                logger.info(f"{name}: nothing was saved at the end: {outcome.description}")
            return
        full = outcome.message if outcome.reason is CrashReason.DISK_FULL else runner.files.free_space_error()
        if full:
            return runner.give_up(disk_full_error(runner.files.directory, full))
        if outcome.reason is CrashReason.INFRASTRUCTURE:
            return runner.give_up(InfrastructureError(f"{outcome.message}; the same command continues"))
        again = self._work.crashed(proposal.number, outcome)
        logger.info(
            f"{name}: attempt {proposal.attempt} crashed: {outcome.description}"
            + ("; it is tried again from its last checkpoint" if again else "; given up")
        )
        if not again:
            self._finish(proposal, "FAILED")

    def _finish(self, proposal: Proposal, status: str, **told) -> None:
        self._runner.sink.finish_trial(self._work.key(proposal.number), status=status, **told)

    def _directory(self, proposal: Proposal) -> Path:
        return self._runner.files.directory / self._work.folder / f"{proposal.number:05d}"


def _short(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
