"""What the two terms cost: the same training step with λ as configured and with λ = 0, measured in turns.

The steps are those of `uvar_tune.training.train` on the checkpoint's own tokens, from fresh weights.
"""

from __future__ import annotations

import dataclasses
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from uvar_tune.config import Config
from uvar_tune.data import TokenCache
from uvar_tune.model.scales import split
from uvar_tune.orchestration.build import new_var, objective_of
from uvar_tune.orchestration.prepare import Assets
from uvar_tune.training import Progress, train

STEPS, LEAST_STEPS, MOST_SEC, WARM = 24, 3, 20.0, 2  # measured steps of each arm, fewer when they take longer
_GIB = 2**30


def step_cost(config: Config, assets: Assets, vqvae, device: str,
              progress: Callable[[int, int], None]) -> dict[str, dict[str, float]]:
    """`baseline` (λ = 0) and `ours` (as configured): parameters, batch_size, memory_gib, epoch_sec (median step × steps).

    Memory on a GPU is the allocator's peak; on a CPU parameters, gradients, moments and what is kept for the backward pass.
    """
    config = config.with_values({"objective.lambda_unit": "raw"})  # what a step costs does not depend on the value of λ
    arms = {"baseline": config.with_values({"objective.lambda_1": 0.0, "objective.lambda_2": 0.0}), "ours": config}
    memory = {name: _memory(arm, assets, vqvae, device) for name, arm in arms.items()}
    streams = {name: _steps(arm, assets, vqvae, device) for name, arm in arms.items()}
    took: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(WARM + STEPS):
        for name in sorted(arms, reverse=bool(turn % 2)):
            began = time.perf_counter()
            next(streams[name][1])
            _wait(device)
            took[name].append(time.perf_counter() - began)
        progress(turn + 1, WARM + STEPS)
        if turn + 1 >= WARM + LEAST_STEPS and sum(map(sum, took.values())) > 2 * MOST_SEC:
            progress(WARM + STEPS, WARM + STEPS)
            break
    for _, stream in streams.values():
        stream.close()
    batch = config.training.batch_size
    steps = len(TokenCache.open(assets.tokens["train"]).labels_N) / batch
    return {name: {"parameters": float(sum(p.numel() for p in streams[name][0].parameters())), "batch_size": float(batch),
                   "memory_gib": memory[name] / _GIB, "epoch_sec": statistics.median(took[name][WARM:]) * steps} for name in arms}


def hardware(device: str) -> str:
    """What a time or a memory figure belongs to."""
    if torch.device(device).type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads, torch {torch.__version__}"


def _steps(config: Config, assets: Assets, vqvae, device: str) -> tuple[torch.nn.Module, Iterator[Any]]:
    """(fresh VAR, endless-enough stream of its training steps); each ``next`` is one step."""
    t = config.training
    var = new_var(config, vqvae, assets.num_classes, seed=0).to(device)
    compute = objective_of(config, dataclasses.asdict(assets), vqvae, device)

    def loss(model, tokenizer, tokens_BL, labels_B, noise):
        teacher_input = tokenizer.teacher_input(split(tokens_BL, tokenizer.scales))
        return compute(model(labels_B, teacher_input, **noise), tokens_BL)

    images = max(t.images, (WARM + STEPS + 1) * t.batch_size)
    events = train(var, vqvae, TokenCache.open(assets.tokens["train"]), loss=loss, images=images, batch_size=t.batch_size,
                   learning_rate=t.learning_rate, schedule=t.schedule, warmup_images=t.warmup_images,
                   final_ratio=t.final_ratio, weight_decay=t.weight_decay, betas=t.betas, clip=t.clip, seed=0, rank=0,
                   world_size=1, device=torch.device(device), precision=t.precision, accumulate=t.accumulate,
                   log_images=t.batch_size, checkpoint_images=images)
    return var, (event for event in events if isinstance(event, Progress))


def _memory(config: Config, assets: Assets, vqvae, device: str) -> float:
    """Bytes of a training step in the steady state."""
    before = torch.cuda.memory_allocated(device) if torch.device(device).type == "cuda" else 0
    var, stream = _steps(config, assets, vqvae, device)
    next(stream)
    kept: dict[tuple[int, int], int] = {}
    known = {p.untyped_storage().data_ptr() for p in var.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr(), storage.nbytes()] = storage.nbytes()
        return tensor

    try:
        if torch.device(device).type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            next(stream)
            _wait(device)
            return torch.cuda.max_memory_allocated(device) - before
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            next(stream)
    finally:
        stream.close()
    state = 4 * sum(p.numel() * p.element_size() for p in var.parameters())  # weights, gradients, two moments
    return state + sum(kept.values())


def _wait(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
