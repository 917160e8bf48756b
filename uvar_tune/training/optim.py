"""AdamW as VAR uses it: which parameters decay, and the learning rate of each step.

Groups and schedules are those of the official release; a schedule's ``it`` is counted in images here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from uvar_tune.config.schema import TrainingConfig

UNDECAYED = (
    "cls_token",
    "start_token",
    "task_token",
    "cfg_uncond",
    "pos_embed",
    "pos_1LC",
    "pos_start",
    "start_pos",
    "lvl_embed",
    "gamma",
    "beta",
    "ada_gss",
    "moe_bias",
    "scale_mul",
)
WARMUP_START = 0.005  # of the peak
EPS = 1e-8

# (share of the steps from the end of the warm-up to the last, final ratio) → factor of the peak
SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "lin0": lambda passed, final: _line(passed, final, start=0.05),
    "lin": lambda passed, final: _line(passed, final, start=0.15),
    "lin00": lambda passed, final: _line(passed, final, start=0.0),
    "cos": lambda passed, final: final + (1 - final) * (0.5 + 0.5 * math.cos(math.pi * passed)),
    "exp": lambda passed, final: 1.0 if passed < 0.15 else final ** ((passed - 0.15) / 0.85),
}


def _line(passed: float, final: float, start: float) -> float:
    """1 until ``start``, then linear down to ``final``."""
    return 1.0 if passed < start else final + (1 - final) * (1 - passed) / (1 - start)


def rate_factor(seen: int, config: TrainingConfig) -> float:
    """The learning rate of the step that starts after ``seen`` images, as a share of the peak.

    It rises linearly from 0.005 over ``config.warmup_images``, then follows ``config.schedule`` down to
    ``config.final_ratio`` in the last step.
    """
    warmup = config.warmup_images
    if seen < warmup:
        return WARMUP_START + (1 - WARMUP_START) * seen / warmup
    last = config.images - config.batch_size
    passed = (seen - warmup) / (last - warmup) if last > warmup else 0.0
    return SCHEDULES[config.schedule](passed, config.final_ratio)


def decays(name: str, parameter: torch.Tensor) -> bool:
    """Whether weight decay applies: not to vectors, biases, positional and level embeddings, and gains."""
    return not (parameter.ndim == 1 or name.endswith("bias") or any(key in name for key in UNDECAYED))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in the order of `named_parameters`: undecayed, then decayed; empty groups are omitted."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for name, p in named if not decays(name, p)], "weight_decay": 0.0},
        {"params": [p for name, p in named if decays(name, p)], "weight_decay": weight_decay},
    ]
    return [group for group in groups if group["params"]]


def adamw(model: nn.Module, *, weight_decay: float, betas: tuple[float, float]) -> torch.optim.AdamW:
    """Fused AdamW over `parameter_groups`; the learning rate is set before each step."""
    return torch.optim.AdamW(parameter_groups(model, weight_decay), lr=0.0, betas=tuple(betas), eps=EPS, fused=True)


class Average:
    """Exponential moving average of a model's parameters.

    Args:
        model: whose parameters are averaged.
        half_life_images: images after which a parameter value has half of its weight.
        batch_size: images between two updates.
    """

    def __init__(self, model: nn.Module, *, half_life_images: int, batch_size: int):
        self._model, self._decay = model, 0.5 ** (batch_size / half_life_images)
        self._average = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters after a step."""
        current = [parameter.detach() for _, parameter in self._model.named_parameters()]
        torch._foreach_lerp_(list(self._average.values()), current, 1 - self._decay)

    def state(self) -> dict[str, torch.Tensor]:
        """A complete state dict of the model: averaged parameters, and the model's own buffers."""
        return {**self._model.state_dict(), **self._average}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Restore what `state` returned."""
        for name, value in self._average.items():
            value.copy_(state[name])
