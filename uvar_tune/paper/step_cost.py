"""Cost of the two terms: the same training step with λ as configured and with λ = 0, measured in turns (Table 5).

The steps are those of `uvar_tune.training.train` on the checkpoint's own tokens, from fresh weights.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from uvar_tune.config.schema import Config
from uvar_tune.data import TokenCache
from uvar_tune.specs import Assets
from uvar_tune.training import Progress, RunContext, train
from uvar_tune.trial.factory import new_var, training_loss

STEPS, MIN_STEPS, MAX_SEC = 24, 3, 20.0  # measured steps of each arm; fewer if they take longer than MAX_SEC
WARMUP_STEPS = 2  # steps before them
_GIB = 2**30


def step_cost(
    config: Config, assets: Assets, vqvae, device: str, progress: Callable[[int, int], None]
) -> dict[str, dict[str, float]]:
    """Measure both arms.

    Args:
        config: of the checkpoint.
        assets: its tokens are trained on.
        vqvae: the tokenizer.
        device: to measure on.
        progress: called with (steps done, steps).

    Returns:
        `baseline` (λ = 0) and `ours` (as configured), each with parameters, batch_size, memory_gib and epoch_sec
        (median step × steps an epoch). Memory on a GPU is the allocator's peak; on a CPU it is parameters, gradients,
        moments and the tensors saved for the backward pass.
    """
    config = config.with_values({"loss.lambda_unit": "raw"})  # what a step costs does not depend on the value of λ
    arms = {"baseline": config.model_copy(update={"loss": config.loss.baseline()}), "ours": config}
    memory = {name: step_memory(partial(step_of, arm, assets, vqvae, device), device) for name, arm in arms.items()}
    steps = {name: step_of(arm, assets, vqvae, device) for name, arm in arms.items()}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(WARMUP_STEPS + STEPS):
        for name in sorted(arms, reverse=bool(turn % 2)):
            start = time.perf_counter()
            steps[name][1]()
            wait(device)
            seconds[name].append(time.perf_counter() - start)
        progress(turn + 1, WARMUP_STEPS + STEPS)
        if turn + 1 >= WARMUP_STEPS + MIN_STEPS and sum(map(sum, seconds.values())) > 2 * MAX_SEC:
            progress(WARMUP_STEPS + STEPS, WARMUP_STEPS + STEPS)
            break
    batch = config.training.batch_size
    epoch = len(TokenCache.open(assets.tokens["train"]).labels_N) / batch
    return {
        name: {
            "parameters": float(sum(p.numel() for p in steps[name][0].parameters())),
            "batch_size": float(batch),
            "memory_gib": memory[name] / _GIB,
            "epoch_sec": statistics.median(seconds[name][WARMUP_STEPS:]) * epoch,
        }
        for name in arms
    }


def hardware(device: str) -> str:
    """The hardware and library that a time or memory figure depends on."""
    if torch.device(device).type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads, torch {torch.__version__}"


def step_of(
    config: Config, assets: Assets, vqvae, device: str, loss: Callable[..., Any] | None = None
) -> tuple[torch.nn.Module, Callable[[], Any]]:
    """(fresh VAR, function that runs its next training step).

    Args:
        config: of the training.
        assets: its tokens are trained on.
        vqvae: the tokenizer.
        device: of the training.
        loss: makes, of the VAR, the loss that `train` takes; by default the configuration's, on cached tokens.
    """
    t = config.training
    var = new_var(config, vqvae, assets.num_classes, seed=0).to(device)
    step_loss = loss(var) if loss else training_loss(config, assets, vqvae, var, device)
    images = max(t.images, (WARMUP_STEPS + STEPS + 1) * t.batch_size)
    events = train(
        var,
        vqvae,
        TokenCache.open(assets.tokens["train"]),
        step_loss,
        t.model_copy(update={"images": images, "ema": None}),
        RunContext(seed=0, device=device, log_images=t.batch_size, checkpoint_images=images),
    )
    return var, partial(next, (event for event in events if isinstance(event, Progress)))


def step_memory(make: Callable[[], tuple[torch.nn.Module, Callable[[], Any]]], device: str) -> float:
    """Bytes of a training step in the steady state.

    Args:
        make: returns the model and a function that runs its next step.
        device: of the model.
    """
    on_gpu = torch.device(device).type == "cuda"
    before = torch.cuda.memory_allocated(device) if on_gpu else 0
    var, step = make()
    step()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
        step()
        wait(device)
        return torch.cuda.max_memory_allocated(device) - before
    saved: dict[tuple[int, int], int] = {}
    parameters = {p.untyped_storage().data_ptr() for p in var.parameters()}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr(), storage.nbytes()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        step()
    state = 4 * sum(p.numel() * p.element_size() for p in var.parameters())  # weights, gradients, two moments
    return state + sum(saved.values())


def wait(device: str) -> None:
    """Wait for the kernels of a GPU."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
