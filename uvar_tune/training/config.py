"""What is to be trained and where: every setting of the loop, checked before the first expensive second."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from uvar_tune.data.order import check_positions
from uvar_tune.errors import ConfigError, choose
from uvar_tune.training.optim import SCHEDULES

PRECISIONS = ("auto", "fp32", "bf16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What determines the numbers; a resumed training must have the same.

    Attributes:
        images: length. batch_size: over all ranks and accumulation. learning_rate: the peak.
        clip: largest norm of the gradient, None leaves it.
        precision: `fp32` or `bf16`, resolved. ema: half-life in images, None for no average.
        data: content hashes and number of the images.
    """

    images: int
    batch_size: int
    learning_rate: float
    schedule: str
    warmup_images: int
    final_ratio: float
    weight_decay: float
    betas: tuple[float, float]
    clip: float | None
    seed: int
    precision: str
    ema: int | None
    data: Mapping[str, Any]

    def __post_init__(self):
        choose(self.schedule, SCHEDULES, "schedule", "training.schedule")
        rules = (
            ("learning_rate", self.learning_rate, 0 < self.learning_rate < math.inf, "above 0 and finite"),
            (
                "warmup_images",
                self.warmup_images,
                0 <= self.warmup_images < self.images,
                f"from 0 to below {self.images}",
            ),
            ("final_ratio", self.final_ratio, 0 < self.final_ratio <= 1, "above 0 and at most 1"),
            ("weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "at least 0"),
            ("betas", self.betas, all(0 <= beta < 1 for beta in self.betas), "two numbers from 0 to below 1"),
            ("clip", self.clip, self.clip is None or self.clip > 0, "above 0, or null"),
            ("ema", self.ema, self.ema is None or self.ema > 0, "a half-life in images, or null"),
        )
        for name, value, holds, rule in rules:
            if not holds:
                raise ConfigError(f"{value} must be {rule}", where=f"training.{name}")

    def record(self) -> dict[str, Any]:
        """As plain data, for the checkpoint."""
        return {**dataclasses.asdict(self), "betas": list(self.betas), "data": dict(self.data)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Who computes, and how often it is heard of. None of this changes what is computed, up to rounding.

    Attributes:
        accumulate: forward and backward passes a step. log_images, checkpoint_images: between two events.
        also_at: further numbers of images at which a CheckpointEvent comes.
        stop: asked in each step; once it says so on any rank, all of them end after that step, with a CheckpointEvent.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")
    accumulate: int = 1
    log_images: int
    checkpoint_images: int
    also_at: tuple[int, ...] = ()
    stop: Callable[[], bool] | None = None

    def check(self, plan: Plan, count: int) -> None:
        """ConfigError unless ``plan`` can be carried out here on ``count`` images."""
        if self.world_size < 1 or self.accumulate < 1 or not 0 <= self.rank < self.world_size:
            raise ConfigError(f"rank {self.rank} of {self.world_size}, accumulate {self.accumulate}", where="training")
        check_positions(
            images=plan.images, batch_size=plan.batch_size, shares=self.world_size * self.accumulate, count=count
        )
        asked = [
            ("run.log_images", self.log_images),
            ("run.checkpoint_images", self.checkpoint_images),
            *(("study.rungs", value) for value in self.also_at),
        ]
        for where, value in asked:
            if value < 1 or value % plan.batch_size:
                near = max(1, round(value / plan.batch_size)) * plan.batch_size
                raise ConfigError(
                    f"{value} is not a multiple of the batch {plan.batch_size}", where=where, nearest=str(near)
                )


def resolve_precision(asked: str, device: torch.device) -> str:
    """`fp32` or `bf16`: what `auto` means on this device, or what was asked.

    Raises:
        ConfigError: the device cannot do it.
    """
    choose(asked, PRECISIONS, "precision", "training.precision")
    able = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if asked == "auto":
        return "bf16" if able else "fp32"
    if asked == "bf16" and not able:
        raise ConfigError(
            f"bf16 needs a GPU that computes in it, and this is {device.type}; take fp32 or auto",
            where="training.precision",
            nearest="fp32",
        )
    return asked


def require_same(then: Mapping[str, Any], now: Mapping[str, Any], *, where: str) -> None:
    """ConfigError that shows each difference between two trees of settings."""
    lines = differences(then, now)
    if lines:
        raise ConfigError("cannot be continued under another configuration: " + "; ".join(lines), where=where)


def differences(then: Any, now: Any, path: str = "") -> list[str]:
    """`key: then … , now …` for each leaf that differs; lists and tuples alike."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        keys = list(dict.fromkeys([*then, *now]))
        return [
            line
            for key in keys
            for line in differences(then.get(key), now.get(key), f"{path}.{key}" if path else str(key))
        ]
    plain = [list(value) if isinstance(value, tuple) else value for value in (then, now)]
    return [] if plain[0] == plain[1] else [f"{path} was {plain[0]!r}, now {plain[1]!r}"]
