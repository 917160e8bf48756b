"""What each Train worker runs: the attempt, with this worker's rank, device and DDP wrapping."""

from __future__ import annotations

import json
from typing import Any

from uvar_tune.orchestration.outcome import write_outcome
from uvar_tune.orchestration.trial import RUNG


def work(job: dict[str, Any]) -> None:
    """Train and evaluate one attempt; rank 0 reports rungs and writes down how it ended."""
    import ray.train
    import ray.train.torch
    import torch

    from uvar_tune.orchestration.attempt import run_attempt

    context = ray.train.get_context()
    torch.set_num_threads(max(1, int(job["config"]["run"]["cpus_per_worker"])))
    result = run_attempt(job, rank=context.get_world_rank(), world_size=context.get_world_size(),
                         device=ray.train.torch.get_device(), wrap=_wrap,
                         report=lambda rung: ray.train.report({RUNG: json.dumps(rung)}))
    if context.get_world_rank() == 0:
        write_outcome(job["directory"], job["seeds"], result)


def work_on_tokenizer(job: dict[str, Any]) -> None:
    """Train and judge a tokenizer; rank 0 writes down how it ended."""
    import ray.train
    import ray.train.torch
    import torch

    from uvar_tune.orchestration.tokenizer_attempt import run_tokenizer_attempt

    context = ray.train.get_context()
    torch.set_num_threads(max(1, int(job["config"]["run"]["cpus_per_worker"])))
    result = run_tokenizer_attempt(job, rank=context.get_world_rank(), world_size=context.get_world_size(),
                                   device=ray.train.torch.get_device(), wrap=_wrap)
    if context.get_world_rank() == 0:
        write_outcome(job["directory"], job["seeds"], result)


def _wrap(model):
    import ray.train.torch

    return ray.train.torch.prepare_model(model, parallel_strategy_kwargs={"broadcast_buffers": False})
