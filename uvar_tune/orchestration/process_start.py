"""What each process of Ray does before its first task: the imports that it will need, so that one started ahead has them.

Ray calls `setup` by name in every process of a job; it decides by the environment what this one is for. A wrong guess costs
an import too many or one later, no more.
"""

from __future__ import annotations

import importlib
import os

KIND = "UVAR_PROCESS"
WORKER = "worker"  # of Train
_OF_CONTROLLERS = "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC"  # Train sets it for its controller, and for the helpers that this starts
_HELPER, _DRIVER = ("ray.train", "ray.tune"), ("uvar_tune.orchestration.trial",)
_WORKER = ("uvar_tune.orchestration.worker", "uvar_tune.orchestration.attempt", "torch._dynamo")  # which torch.optim imports


def setup() -> None:
    """Import for a worker of Train what an attempt uses, for what drives a trial Train with torch, for the rest Train alone."""
    worker = os.environ.get(KIND) == WORKER
    for module in _WORKER if worker else _HELPER if _OF_CONTROLLERS in os.environ else _DRIVER:
        importlib.import_module(module)
