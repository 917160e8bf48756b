"""One attempt at one trial as Ray sees it: a Tune trainable that runs a Train worker group.

Weights, curves and the data position lie in the trial's own directory, so that an attempt continues from the last valid
checkpoint whichever process died; neither Tune's nor Train's own state is kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import re
import time
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from uvar_tune.errors import InfrastructureError
from uvar_tune.io.disk import disk_full_reason
from uvar_tune.ray_backend.graceful_stop import GracefulShutdown
from uvar_tune.ray_backend.process_roles import worker_runtime_env
from uvar_tune.specs import CrashReason, OutcomeKind, TrialOutcome, TrialSpec, WorkerGroupSpec, crash
from uvar_tune.trial.outcome_file import read_outcome, write_crash

logger = logging.getLogger(__name__)

_LOW_MEMORY = re.compile(r"killed due to the node running low on memory\..*? was ([^(]*?used / [^(]*?limit)", re.DOTALL)
_COLLECTIVE = re.compile(r"gloo|nccl|Connection (closed|reset)|ProcessGroup|DistBackendError", re.IGNORECASE)
RUNG = "uvar_rung"  # what is reported; how an attempt ended lies in the trial's directory


def trainable(parameters: dict[str, TrialSpec]) -> None:
    """Tune trainable: run the worker group of one attempt, and write down why it crashed.

    Must not call `tune.report`: mixing reports of the trainable and of the workers deadlocks Tune. Uses
    `max_failures=0`: when Tune stops a trial the workers die before the Train controller, and a controller that retried
    would leak a placement group. The study itself starts the next attempt.
    """
    spec = dataclasses.replace(parameters["spec"], driven=time.time())
    callbacks = [TuneReportCallback()] if spec.config.study.rungs else []
    try:
        fit(spec, callbacks=callbacks)
    except Exception as error:  # whatever a worker raised
        with contextlib.suppress(OSError):  # a full disk is detected by the study itself
            write_crash(spec.directory, spec.attempt, crash_outcome(error))


def run_worker_group(spec: WorkerGroupSpec, signals: GracefulShutdown, loop=None) -> TrialOutcome | None:
    """Run the worker group from the driver itself; how it ended. A failure is an outcome with the worker's own message.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM, once the workers have saved where they are.
    """
    try:
        signals.running(lambda: fit(spec, loop))
    except Exception as error:  # whatever a worker raised
        outcome = crash_outcome(error)
        if signals.asked.is_set():
            logger.info(f"nothing was saved at the end: {outcome.description}")
            raise KeyboardInterrupt from None
        return outcome
    outcome = read_outcome(spec.directory, spec.seeds)
    if signals.asked.is_set() and (outcome is None or outcome.kind is not OutcomeKind.COMPLETE):
        raise KeyboardInterrupt  # the file may be of an earlier attempt
    return outcome


def fit(spec: WorkerGroupSpec, loop=None, *, callbacks=()) -> None:
    """Run the worker group of ``spec`` to its end; what rank 0 reports goes to the callbacks.

    Args:
        spec: of the attempt.
        loop: what each worker runs; by default, the attempt at a trial.
        callbacks: of Ray Train.
    """
    from uvar_tune.ray_backend.worker import work

    run = spec.config.run
    resources = {"CPU": run.cpus_per_worker}
    if run.gpus_per_worker:
        resources["GPU"] = run.gpus_per_worker
    trainer = _Trainer(
        loop or work,
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


class _Trainer(TorchTrainer):
    """Without the process that Train starts in each run for data sets of Ray Data: there are none, workers read a token
    cache. And without a handler of its own for Ctrl-C, in the place of ours.
    """

    def _register_sigint_handler(self, controller) -> None: ...

    def _create_default_callbacks(self) -> list[Any]:
        return [one for one in super()._create_default_callbacks() if type(one).__name__ != "DatasetsCallback"]


def crash_outcome(error: BaseException) -> TrialOutcome:
    """The crash behind what Ray raised: the first cause among the failures of all ranks, without Ray's wrappers.

    Ray reports a worker that it killed because of low memory in text only; this is the one place where it is parsed.
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
