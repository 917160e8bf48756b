"""AdamW as VAR sets it up: which parameters decay, and the learning rate at each step.

Groups and schedules are those of the official release; a schedule's ``it`` is counted in images here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

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

# share of the way from the end of the warm-up to the last step, final ratio → factor on the peak
SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "lin0": lambda passed, final: _line(passed, final, start=0.05),
    "lin": lambda passed, final: _line(passed, final, start=0.15),
    "lin00": lambda passed, final: _line(passed, final, start=0.0),
    "cos": lambda passed, final: final + (1 - final) * (0.5 + 0.5 * math.cos(math.pi * passed)),
    "exp": lambda passed, final: 1.0 if passed < 0.15 else final ** ((passed - 0.15) / 0.85),
}


def _line(passed: float, final: float, start: float) -> float:
    """1 until ``start``, then straight down to ``final``."""
    return 1.0 if passed < start else final + (1 - final) * (1 - passed) / (1 - start)


def rate_factor(
    seen: int, *, schedule: str, images: int, batch_size: int, warmup_images: int, final_ratio: float
) -> float:
    """The learning rate of the step that starts after ``seen`` images, as a share of the peak.

    Rises from 0.005 in a straight line over ``warmup_images``, then follows ``schedule`` and stands at ``final_ratio`` in
    the last step.
    """
    if seen < warmup_images:
        return WARMUP_START + (1 - WARMUP_START) * seen / warmup_images
    last = images - batch_size
    passed = (seen - warmup_images) / (last - warmup_images) if last > warmup_images else 0.0
    return SCHEDULES[schedule](passed, final_ratio)


def decays(name: str, parameter: torch.Tensor) -> bool:
    """Whether weight decay applies: not to vectors, biases, positions, levels and gains."""
    return not (parameter.ndim == 1 or name.endswith("bias") or any(key in name for key in UNDECAYED))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in named_parameters order: the undecayed, then the decayed (a group that is empty is left out)."""
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
    """Exponential moving average of a model's parameters, its half-life in images.

    Buffers are the model's own: `state` gives a whole state dict that the model can load.
    """

    def __init__(self, model: nn.Module, *, half_life_images: int, batch_size: int):
        self._model, self._keep = model, 0.5 ** (batch_size / half_life_images)
        self._average = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        current = [parameter.detach() for _, parameter in self._model.named_parameters()]
        torch._foreach_lerp_(list(self._average.values()), current, 1 - self._keep)

    def state(self) -> dict[str, torch.Tensor]:
        return {**self._model.state_dict(), **self._average}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        for name, value in self._average.items():
            value.copy_(state[name])
