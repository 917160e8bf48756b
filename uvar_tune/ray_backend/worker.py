"""What each Train worker runs: the attempt, with this worker's rank, device and DDP wrapping."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from uvar_tune.ray_backend.trainer import RUNG
from uvar_tune.trial.outcome_file import INTERRUPTION, write_outcome


def work(job: dict[str, Any]) -> None:
    """Train and evaluate one attempt; rank 0 reports rungs."""
    import ray.train

    from uvar_tune.trial.trial import run_attempt

    _run(job, run_attempt, report=lambda rung: ray.train.report({RUNG: json.dumps(rung)}))


def work_on_tokenizer(job: dict[str, Any]) -> None:
    """Train and judge a tokenizer."""
    from uvar_tune.trial.tokenizer_trial import run_tokenizer_attempt

    _run(job, run_tokenizer_attempt)


def _run(job: dict[str, Any], attempt: Callable[..., dict[str, Any]], **options) -> None:
    """Run ``attempt`` on this worker; rank 0, or the one that alone knows of it, writes down how it ended."""
    import ray.train
    import ray.train.torch
    import torch

    from uvar_tune.ray_backend.stop_flag import StopFlagListener
    from uvar_tune.training.memory import keep_freed_memory

    context = ray.train.get_context()
    keep_freed_memory()
    torch.set_num_threads(max(1, int(job["config"]["run"]["cpus_per_worker"])))
    with StopFlagListener() as stop:
        result = attempt(
            job,
            rank=context.get_world_rank(),
            world_size=context.get_world_size(),
            device=ray.train.torch.get_device(),
            wrap=_wrap,
            stop=stop,
            **options,
        )
    if result["outcome"] == INTERRUPTION:  # it goes on another time
        return
    alone = result.pop("alone", False) and context.get_world_size() > 1
    if context.get_world_rank() == 0 or alone:
        write_outcome(job["directory"], job["seeds"], result)
    if alone:  # the others wait for this rank: only a failure ends the group
        raise RuntimeError(f"{result['outcome']}: {result['reason']}")


def _wrap(model):
    import ray.train.torch

    return ray.train.torch.prepare_model(model, parallel_strategy_kwargs={"broadcast_buffers": False})
