"""What each Train worker runs: the attempt, with this worker's rank, device and DDP wrapping."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from uvar_tune.ray_backend.trainer import RUNG
from uvar_tune.specs import OutcomeKind, TokenizerSpec, TrialOutcome, TrialSpec, WorkerGroupSpec
from uvar_tune.trial.outcome_file import write_outcome


def work(parameters: dict[str, TrialSpec]) -> None:
    """Train and score one attempt; rank 0 reports rungs."""
    import ray.train

    from uvar_tune.trial.trial import run_attempt

    _run(parameters["spec"], run_attempt, report=lambda rung: ray.train.report({RUNG: json.dumps(rung)}))


def work_on_tokenizer(parameters: dict[str, TokenizerSpec]) -> None:
    """Train and score a tokenizer."""
    from uvar_tune.trial.tokenizer_trial import run_tokenizer_attempt

    _run(parameters["spec"], run_tokenizer_attempt)


def _run(spec: WorkerGroupSpec, attempt: Callable[..., TrialOutcome], **options: Any) -> None:
    """Run ``attempt`` on this worker and write its outcome: on rank 0, or on the only rank that knows of a failure."""
    import ray.train
    import ray.train.torch
    import torch

    from uvar_tune.ray_backend.stop_flag import StopFlagListener
    from uvar_tune.training.memory import keep_freed_memory
    from uvar_tune.trial.trial import RankContext

    context = ray.train.get_context()
    keep_freed_memory()
    torch.set_num_threads(max(1, int(spec.config.run.cpus_per_worker)))
    with StopFlagListener() as stop_requested:
        rank = RankContext(
            rank=context.get_world_rank(),
            world_size=context.get_world_size(),
            device=ray.train.torch.get_device(),
            wrap=_wrap,
            stop_requested=stop_requested,
            **options,
        )
        outcome = attempt(spec, rank)
    if outcome.kind is OutcomeKind.INTERRUPTED:  # not written: the trial resumes later
        return
    single = outcome.single_rank_failure and rank.world_size > 1
    if rank.rank == 0 or single:
        write_outcome(spec.directory, spec.seeds, outcome)
    if single:  # the other ranks wait for this one: only an error ends the group
        raise RuntimeError(f"{outcome.kind.value}: {outcome.message}")


def _wrap(model):
    import ray.train.torch

    from uvar_tune.training.loop import DDP_OPTIONS

    return ray.train.torch.prepare_model(model, parallel_strategy_kwargs=DDP_OPTIONS)
