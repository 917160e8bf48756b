"""What a training is run with besides its config section, and the comparison of two configurations."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from uvar_tune.config.schema import TrainingConfig
from uvar_tune.data.order import check_positions
from uvar_tune.errors import ConfigError, choose

PRECISIONS = ("auto", "fp32", "bf16")
_CHECKPOINTS = 4  # written during a training whose interval is not set
_NUMERICAL = (
    "images",
    "batch_size",
    "learning_rate",
    "schedule",
    "warmup_images",
    "final_ratio",
    "weight_decay",
    "betas",
    "clip",
    "precision",
    "ema",
)  # the fields of TrainingConfig that change the numbers, rather than how they are computed


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunContext:
    """Where a training runs and how often it reports. Apart from the seed, nothing here changes the numbers.

    Attributes:
        seed: of data order, label dropout and drop path.
        rank: of this process.
        world_size: number of ranks.
        device: of the model.
        log_images: images between two Progress events; None is one for each of about 100 (tokenizer) or 200 points.
        checkpoint_images: images between two CheckpointEvents; None writes four.
        also_at: further numbers of images at which a CheckpointEvent is due.
    """

    seed: int
    rank: int = 0
    world_size: int = 1
    device: torch.device | str = "cpu"
    log_images: int | None = None
    checkpoint_images: int | None = None
    also_at: tuple[int, ...] = ()

    def resolve(self, config: TrainingConfig, *, data_size: int, points: int) -> RunContext:
        """A copy whose intervals are set.

        Args:
            config: of the training.
            data_size: images in the data set.
            points: Progress events where ``log_images`` is None.

        Raises:
            ConfigError: ranks, intervals or data that do not fit the batch.
        """
        if self.world_size < 1 or not 0 <= self.rank < self.world_size:
            raise ConfigError(f"rank {self.rank} of {self.world_size}", where="training")
        shares = self.world_size * config.accumulate
        check_positions(images=config.images, batch_size=config.batch_size, shares=shares, count=data_size)
        steps, batch = config.images // config.batch_size, config.batch_size
        run = dataclasses.replace(
            self,
            device=torch.device(self.device),
            log_images=max(1, steps // points) * batch if self.log_images is None else self.log_images,
            checkpoint_images=(
                max(1, steps // _CHECKPOINTS) * batch if self.checkpoint_images is None else self.checkpoint_images
            ),
        )
        intervals = [("run.log_images", run.log_images), ("run.checkpoint_images", run.checkpoint_images)]
        for where, value in [*intervals, *(("study.rungs", rung) for rung in run.also_at)]:
            if value < 1 or value % batch:
                multiple = max(1, round(value / batch)) * batch
                raise ConfigError(f"{value} is not a multiple of the batch {batch}", where=where, nearest=str(multiple))
        return run


def hyperparameters(config: TrainingConfig, seed: int, data: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that determines the numbers of a training, as plain data; a resumed training must have the same.

    Args:
        config: with its precision resolved.
        seed: of the training.
        data: content hashes and size of the data set.
    """
    values = {name: getattr(config, name) for name in _NUMERICAL}
    return {**values, "betas": list(config.betas), "seed": seed, "data": dict(data)}


def resolve_precision(precision: str, device: torch.device) -> str:
    """``fp32`` or ``bf16``; ``auto`` is bf16 on a GPU that computes in it, else fp32.

    Raises:
        ConfigError: the device does not support ``precision``.
    """
    choose(precision, PRECISIONS, "precision", "training.precision")
    supported = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "auto":
        return "bf16" if supported else "fp32"
    if precision == "bf16" and not supported:
        raise ConfigError(
            f"bf16 needs a GPU that computes in it, and this is {device.type}; take fp32 or auto",
            where="training.precision",
            nearest="fp32",
        )
    return precision


def require_same(then: Mapping[str, Any], now: Mapping[str, Any], *, where: str) -> None:
    """Raise a ConfigError that lists every difference between two trees of settings."""
    lines = differences(then, now)
    if lines:
        raise ConfigError("cannot be continued under another configuration: " + "; ".join(lines), where=where)


def differences(then: Any, now: Any, path: str = "") -> list[str]:
    """``key was then, now now`` for each leaf that differs; a list equals a tuple of the same values."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        keys = list(dict.fromkeys([*then, *now]))
        return [
            line
            for key in keys
            for line in differences(then.get(key), now.get(key), f"{path}.{key}" if path else str(key))
        ]
    plain = [list(value) if isinstance(value, tuple) else value for value in (then, now)]
    return [] if plain[0] == plain[1] else [f"{path} was {plain[0]!r}, now {plain[1]!r}"]
