"""What each process of Ray does before its first task: the imports that it will need, so that one started ahead has
them.

Ray calls `setup` by name in every process of a job; it decides by the environment what this one is for. A wrong guess
costs an import too many or one later, no more.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from typing import Any

import ray
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_put

KIND = "UVAR_PROCESS"
WORKER, TASK = "worker", "task"  # of Train; of ours
CONTROLLER, DRIVER, OTHER = "controller", "driver", "other"  # what a process may be announced as
_OF_CONTROLLERS = (
    "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC"  # Train sets it for its controller, and for the helpers that this starts
)
_HELPER, _MODULES = (
    ("ray.train",),
    {CONTROLLER: ("ray.tune", "ray.train.torch"), DRIVER: ("uvar_tune.ray_backend.trainer",)},
)
_WORKER = ("uvar_tune.ray_backend.worker", "uvar_tune.trial.trial", "torch._dynamo")  # which torch.optim imports


def task_runtime_env() -> dict[str, Any]:
    """The runtime environment of our own tasks: Ray tells them their CPUs first, and then they import."""
    return {"env_vars": {KIND: TASK}}


def worker_runtime_env(cpus: float) -> dict[str, Any]:
    """The runtime environment of a Train worker: libraries that are there before Ray tells it its CPUs know their
    threads.
    """
    return {"env_vars": {KIND: WORKER, "OMP_NUM_THREADS": str(max(1, int(cpus)))}}


def setup() -> None:
    """Import for a worker of Train what an attempt uses; for its controller, and for what drives a trial, Train with
    torch, where they were announced (`announce`): by their environment they are no others than their helpers.

    Nothing of it may look for GPUs: which of them are this process's own is told later.
    """
    kind = os.environ.get(KIND)
    if kind == TASK:
        return
    if kind == WORKER:
        modules = _WORKER
    elif _OF_CONTROLLERS in os.environ:
        modules = _MODULES[CONTROLLER] if _announced(CONTROLLER) else _HELPER
    else:
        modules = _MODULES[DRIVER] if _announced(DRIVER) else ()
    for module in modules:
        importlib.import_module(module)


def announce(kind: str, node: str | None = None) -> None:
    """Of the processes with such an environment that a node (by default this one) starts for the job, the next is of
    this kind.
    """
    with contextlib.suppress(RuntimeError, OSError, ray.exceptions.RayError):  # without it, it imports later
        _internal_kv_put(_key(kind, node), b"1")


def _announced(kind: str) -> bool:
    """Whether this process is the one; nobody else is then."""
    try:
        return bool(_internal_kv_del(_key(kind)))
    except (RuntimeError, OSError, ray.exceptions.RayError):
        return False


def _key(kind: str, node: str | None = None) -> str:
    here = ray.get_runtime_context()
    return f"uvar_tune/{kind}/{here.get_job_id()}/{node or here.get_node_id()}"
