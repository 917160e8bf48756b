"""What each process of Ray does before its first task: the imports that it will need, so that one started ahead has them.

Ray calls `setup` by name in every process of a job; it decides by the environment what this one is for. A wrong guess costs
an import too many or one later, no more.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import ray
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_put

KIND = "UVAR_PROCESS"
WORKER, TASK = "worker", "task"  # of Train; of ours
_OF_CONTROLLERS = "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC"  # Train sets it for its controller, and for the helpers that this starts
_HELPER, _DRIVER = ("ray.train",), ("uvar_tune.orchestration.trial",)
_CONTROLLER = ("ray.tune", "ray.train.torch")
_WORKER = ("uvar_tune.orchestration.worker", "uvar_tune.orchestration.attempt", "torch._dynamo")  # which torch.optim imports


def kind_of_task() -> dict[str, Any]:
    """The runtime environment of our own tasks: Ray tells them their CPUs first, and then they import."""
    return {"env_vars": {KIND: TASK}}


def kind_of_worker(cpus: float) -> dict[str, Any]:
    """The runtime environment of a Train worker: libraries that are there before Ray tells it its CPUs know their threads."""
    return {"env_vars": {KIND: WORKER, "OMP_NUM_THREADS": str(max(1, int(cpus)))}}


def setup() -> None:
    """Import for a worker of Train what an attempt uses, for what drives a trial Train with torch, for the rest Train alone.

    Nothing of it may look for GPUs: which of them are this process's own is told later. A controller is told from its helpers,
    whose environment is the same, only where it was announced (`announce_controller`).
    """
    kind = os.environ.get(KIND)
    if kind == TASK:
        return
    if kind == WORKER:
        modules = _WORKER
    elif _OF_CONTROLLERS not in os.environ:
        modules = _DRIVER
    else:
        here = ray.get_runtime_context()
        modules = _CONTROLLER if _internal_kv_del(_announced(here.get_job_id(), here.get_node_id())) else _HELPER
    for module in modules:
        importlib.import_module(module)


def announce_controller(job: str, node: str) -> None:
    """Of the processes that this node starts for the job with a controller's environment, the next is to be a controller."""
    _internal_kv_put(_announced(job, node), b"1")


def _announced(job: str, node: str) -> str:
    return f"uvar_tune/controller/{job}/{node}"
