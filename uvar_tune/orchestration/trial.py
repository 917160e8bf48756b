"""One attempt at one trial as Ray sees it: a Tune trainable that runs a Train worker group.

Weights, curves and the data position lie in the trial's own directory, so that an attempt continues from the last valid
checkpoint whichever process died; neither Tune's nor Train's own state is kept.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ray import tune
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

RESULT, RUNG = "uvar_result", "uvar_rung"


def trainable(job: dict[str, Any]) -> None:
    """Tune trainable: fit a TorchTrainer and report how the attempt ended (one JSON text under `RESULT`)."""
    try:
        fit(job, callbacks=[TuneReportCallback()], failure=FailureConfig(max_failures=job["worker_retries"]))
    except Exception as error:  # whatever a worker raised: its own message is the reason of this attempt's crash
        tune.report({RESULT: json.dumps({"outcome": "crashed", "reason": root_cause(error)})})


def fit(job: dict[str, Any], *, callbacks=(), failure=None) -> None:
    """Run the worker group of ``job`` to its end; the last report of rank 0 goes to the callbacks."""
    from uvar_tune.orchestration.worker import work

    run = job["config"]["run"]
    resources = {"CPU": run["cpus_per_worker"]}
    if run["gpus_per_worker"]:
        resources["GPU"] = run["gpus_per_worker"]
    trainer = TorchTrainer(
        work, train_loop_config=job,
        scaling_config=ScalingConfig(num_workers=run["workers"], use_gpu=bool(run["gpus_per_worker"]),
                                     resources_per_worker=resources),
        run_config=RunConfig(name=job["run_name"], storage_path=job["ray_directory"], callbacks=list(callbacks),
                             failure_config=failure))
    trainer.fit()


def root_cause(error: BaseException) -> str:
    """The message a worker raised, out of the wrappings that Ray put around it."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        error = next(iter(failures.values()))
    while True:
        inner = getattr(error, "cause", None) or error.__cause__
        if not isinstance(inner, BaseException):
            break
        error = inner
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].strip() if lines else ''}"[:1000]



class LastReport(UserCallback):
    """Keeps rank 0's last report in a file (Train's controller, another process, calls it)."""

    def __init__(self, path: Path):
        self._path = path

    def after_report(self, run_context, metrics, checkpoint) -> None:
        staged = self._path.with_suffix(".tmp")
        staged.write_text(json.dumps(metrics[0]))
        staged.replace(self._path)

    def read(self) -> dict[str, Any]:
        return json.loads(self._path.read_text())
