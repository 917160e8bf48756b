"""One attempt at one trial as Ray sees it: a Tune trainable that runs a Train worker group.

Weights, curves and the data position lie in the trial's own directory, so that an attempt continues from the last valid
checkpoint whichever process died; neither Tune's nor Train's own state is kept.
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from uvar_tune.errors import LOW_MEMORY
from uvar_tune.io.disk import disk_full_reason
from uvar_tune.ray_backend.graceful_stop import GracefulShutdown
from uvar_tune.ray_backend.process_roles import worker_runtime_env
from uvar_tune.trial.outcome_file import read_outcome, write_crash

logger = logging.getLogger(__name__)

_LOW_MEMORY = re.compile(r"killed due to the node running low on memory\..*? was ([^(]*?used / [^(]*?limit)", re.DOTALL)
_REDUCTION = re.compile(r"gloo|nccl|Connection (closed|reset)|ProcessGroup|DistBackendError", re.IGNORECASE)
RUNG = "uvar_rung"  # what is reported; how an attempt ended lies in the trial's directory


def trainable(job: dict[str, Any]) -> None:
    """Tune trainable: fit a TorchTrainer; the message of a failure is written down.

    It reports nothing itself: Tune waits for ever where a report of its own meets one that came from a worker. Train
    restarts nothing here: of a trial that Tune stops, the workers die first, and a controller that still lives would reserve
    the resources of a new worker group that nobody ever frees. The study itself makes the next attempt.
    """
    callbacks = [TuneReportCallback()] if job["config"]["study"]["rungs"] else []
    try:
        fit({**job, "driven": time.time()}, callbacks=callbacks, failure=FailureConfig(max_failures=0))
    except Exception as error:  # whatever a worker raised: its own message is the reason of this attempt's crash
        with contextlib.suppress(OSError):  # a disk that is full is found to be so by the study itself
            write_crash(job["directory"], job["attempt"], root_cause(error))


def run_worker_group(job: dict[str, Any], signals: GracefulShutdown, loop=None) -> dict[str, Any]:
    """Run the worker group from the driver itself; how it ended. A failure is an outcome with the worker's own message.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM, once the workers have saved where they are.
    """
    try:
        signals.running(lambda: fit(job, loop, failure=FailureConfig(max_failures=job["worker_retries"])))
    except Exception as error:  # whatever a worker raised
        if signals.asked.is_set():
            logger.info(f"nothing was saved at the end: {root_cause(error)}")
            raise KeyboardInterrupt from None
        return {"outcome": "crashed", "reason": root_cause(error)}
    result = read_outcome(job["directory"], job["seeds"])
    if (
        signals.asked.is_set() and (result or {}).get("outcome") != "complete"
    ):  # what lies there may be of an earlier time
        raise KeyboardInterrupt
    return result


def fit(job: dict[str, Any], loop=None, *, callbacks=(), failure=None) -> None:
    """Run the worker group of ``job`` to its end; what rank 0 reports goes to the callbacks.

    Args:
        loop: what each worker runs, by default the attempt at a trial.
    """
    from uvar_tune.ray_backend.worker import work

    run = job["config"]["run"]
    resources = {"CPU": run["cpus_per_worker"]}
    if run["gpus_per_worker"]:
        resources["GPU"] = run["gpus_per_worker"]
    trainer = _Trainer(
        loop or work,
        train_loop_config=job,
        scaling_config=ScalingConfig(
            num_workers=run["workers"], use_gpu=bool(run["gpus_per_worker"]), resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=job["run_name"],
            storage_path=job["ray_directory"],
            callbacks=list(callbacks),
            failure_config=failure,
            worker_runtime_env=worker_runtime_env(run["cpus_per_worker"]),
        ),
    )
    trainer.fit()


class _Trainer(TorchTrainer):
    """Without the process that Train starts in each run for data sets of Ray Data: there are none, workers read a token cache.
    And without a handler of its own for Ctrl-C, in the place of ours."""

    def _register_sigint_handler(self, controller) -> None: ...

    def _create_default_callbacks(self) -> list[Any]:
        return [one for one in super()._create_default_callbacks() if type(one).__name__ != "DatasetsCallback"]


def _first(failures: list[BaseException]) -> BaseException:
    """That of several ranks' failures from which the others follow: memory or disk that ran out, then what no reduction says."""

    def follows(failure: BaseException) -> int:
        text = str(failure)
        return 0 if _LOW_MEMORY.search(text) or disk_full_reason(text) else 2 if _REDUCTION.search(text) else 1

    return min(failures, key=follows)


def root_cause(error: BaseException) -> str:
    """The message a worker raised, out of the wrappings that Ray put around it."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        error = _first(list(failures.values()))
    while True:
        inner = getattr(error, "cause", None) or error.__cause__
        if not isinstance(inner, BaseException):
            break
        error = inner
    if low := _LOW_MEMORY.search(str(error)):
        return f"{LOW_MEMORY}: Ray ended it, its node was low on memory ({low[1]})"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if type(error).__module__.startswith("ray."):  # a report of many lines, the last of which says what it was
        lines = lines[-1:]
    return f"{type(error).__name__}: {' '.join(lines)}"[:1000]
