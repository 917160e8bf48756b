"""One attempt at one trial: a Tune trainable that runs a Ray Train worker group, and what each worker runs.

Weights, curves and the data position are stored in the trial's own directory, so that an attempt resumes from the last
valid checkpoint whichever process died. Neither Tune's nor Train's own state is kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import re
import time
from collections.abc import Callable
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.tune.integration.ray_train import TuneReportCallback

from uvar_tune.errors import InfrastructureError
from uvar_tune.io.disk import disk_full_reason
from uvar_tune.ray_backend import _private
from uvar_tune.ray_backend.graceful_stop import GracefulShutdown, StopFlagListener
from uvar_tune.ray_backend.prestart import worker_runtime_env
from uvar_tune.specs import (
    CrashReason,
    OutcomeKind,
    TokenizerSpec,
    TrialOutcome,
    TrialSpec,
    WorkerGroupSpec,
    crash,
)
from uvar_tune.trial.outcome_file import read_outcome, write_crash, write_outcome

logger = logging.getLogger(__name__)

RUNG = "uvar_rung"  # the only metric that is reported; outcomes are files
_LOW_MEMORY = re.compile(r"killed due to the node running low on memory\..*? was ([^(]*?used / [^(]*?limit)", re.DOTALL)
_COLLECTIVE = re.compile(r"gloo|nccl|Connection (closed|reset)|ProcessGroup|DistBackendError", re.IGNORECASE)


def trainable(parameters: dict[str, TrialSpec]) -> None:
    """Tune trainable: run the worker group of one attempt, and write down why it crashed.

    Must not call `tune.report`: mixing reports of the trainable and of the workers deadlocks Tune. Train does not retry
    (`worker_retries` is 0): when Tune stops a trial the workers die before the Train controller, and a controller that
    retried would leak a placement group. The study itself starts the next attempt.
    """
    spec = dataclasses.replace(parameters["spec"], driven=time.time())
    callbacks = [TuneReportCallback()] if spec.config.study.rungs else []
    try:
        fit(spec, callbacks=callbacks)
    except Exception as error:  # whatever a worker raised
        with contextlib.suppress(OSError):  # a full disk is detected by the study itself
            write_crash(spec.directory, spec.attempt, crash_outcome(error))


def run_worker_group(
    spec: WorkerGroupSpec, stop: GracefulShutdown, train_loop: Callable[[dict[str, Any]], None] | None = None
) -> TrialOutcome | None:
    """Run one worker group from the driver itself.

    Args:
        spec: of the attempt.
        stop: ends the group on a signal.
        train_loop: what each worker runs, by default an attempt at a trial.

    Returns:
        How it ended; None if the workers wrote no outcome.

    Raises:
        KeyboardInterrupt: a stop was requested, and the workers have saved a checkpoint.
    """
    try:
        stop.run_blocking(lambda: fit(spec, train_loop))
    except Exception as error:  # whatever a worker raised
        outcome = crash_outcome(error)
        if stop.stop_requested:
            logger.warning(f"no checkpoint was saved at the end: {outcome.description}")
            raise KeyboardInterrupt from None
        return outcome
    outcome = read_outcome(spec.directory, spec.seeds)
    if stop.stop_requested and (outcome is None or outcome.kind is not OutcomeKind.COMPLETE):
        raise KeyboardInterrupt  # the file may be of an earlier attempt
    return outcome


def fit(
    spec: WorkerGroupSpec, train_loop: Callable[[dict[str, Any]], None] | None = None, *, callbacks: tuple | list = ()
) -> None:
    """Run a worker group to its end.

    Args:
        spec: of the attempt.
        train_loop: what each worker runs, by default an attempt at a trial.
        callbacks: of Ray Train; they get what rank 0 reports.
    """
    run = spec.config.run
    resources = {"CPU": run.cpus_per_worker}
    if run.gpus_per_worker:
        resources["GPU"] = run.gpus_per_worker
    trainer = _private.quiet_torch_trainer()(
        train_loop or train_trial,
        train_loop_config={"spec": spec},
        scaling_config=ScalingConfig(
            num_workers=run.workers, use_gpu=bool(run.gpus_per_worker), resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=spec.run_name,
            storage_path=spec.ray_directory,
            callbacks=list(callbacks),
            failure_config=FailureConfig(max_failures=spec.worker_retries),
            worker_runtime_env=worker_runtime_env(run.cpus_per_worker),
        ),
    )
    trainer.fit()


def train_trial(parameters: dict[str, TrialSpec]) -> None:
    """Train loop of a Ray Train worker: one attempt at a trial. Every rank reports rungs."""
    import ray.train

    from uvar_tune.trial.trial import run_attempt

    _run_attempt(parameters["spec"], run_attempt, report=lambda rung: ray.train.report({RUNG: json.dumps(rung)}))


def train_tokenizer(parameters: dict[str, TokenizerSpec]) -> None:
    """Train loop of a Ray Train worker: the training of a tokenizer."""
    from uvar_tune.trial.tokenizer_trial import run_tokenizer_attempt

    _run_attempt(parameters["spec"], run_tokenizer_attempt)


def _run_attempt(spec: WorkerGroupSpec, attempt: Callable[..., TrialOutcome], **options: Any) -> None:
    """Run an attempt on this worker; rank 0, or the only rank that knows of a failure, writes the outcome."""
    import ray.train
    import ray.train.torch
    import torch

    from uvar_tune.training.memory import keep_freed_memory
    from uvar_tune.trial.trial import RankContext

    train_context = ray.train.get_context()
    keep_freed_memory()
    torch.set_num_threads(max(1, int(spec.config.run.cpus_per_worker)))
    with StopFlagListener() as stop_requested:
        context = RankContext(
            rank=train_context.get_world_rank(),
            world_size=train_context.get_world_size(),
            device=ray.train.torch.get_device(),
            wrap=_data_parallel,
            stop_requested=stop_requested,
            **options,
        )
        outcome = attempt(spec, context)
    if outcome.kind is OutcomeKind.INTERRUPTED:  # not written: the trial resumes later
        return
    single = outcome.single_rank_failure and context.world_size > 1
    if context.rank == 0 or single:
        write_outcome(spec.directory, spec.seeds, outcome)
    if single:  # the other ranks wait for this one: only an error ends the group
        raise RuntimeError(f"{outcome.kind.value}: {outcome.message}")


def _data_parallel(model):
    import ray.train.torch

    from uvar_tune.training.loop import DDP_OPTIONS

    return ray.train.torch.prepare_model(model, parallel_strategy_kwargs=DDP_OPTIONS)


def crash_outcome(error: BaseException) -> TrialOutcome:
    """The crash behind what Ray raised: the root cause among the failures of all ranks, without Ray's wrappers.

    Ray reports a worker that it killed because of low memory in text only; this is the one place that parses it.
    """
    failures = getattr(error, "worker_failures", None)
    if failures:
        error = min(failures.values(), key=_consequence)
    while isinstance(inner := getattr(error, "cause", None) or error.__cause__, BaseException):
        error = inner
    text = str(error)
    if low := _LOW_MEMORY.search(text):
        return crash(None, f"Ray killed a worker because its node ran low on memory ({low[1]})", CrashReason.LOW_MEMORY)
    if full := disk_full_reason(error):
        return crash(type(error).__name__, full, CrashReason.DISK_FULL)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if type(error).__module__.startswith("ray."):  # the last line of a report names the error
        lines = lines[-1:]
    reason = CrashReason.INFRASTRUCTURE if isinstance(error, InfrastructureError) else CrashReason.ERROR
    return crash(type(error).__name__, " ".join(lines)[:1000], reason)


def _consequence(failure: BaseException) -> int:
    """Order of the failures of several ranks: memory or disk first, errors of collective operations last."""
    text = str(failure)
    if _LOW_MEMORY.search(text) or disk_full_reason(text):
        return 0
    return 2 if _COLLECTIVE.search(text) else 1
