"""Stage 2: the VAR on cached tokens, with a frozen tokenizer.

Legend: B images of this rank's share of a step, L positions of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from uvar_tune import seeds
from uvar_tune.config.schema import TrainingConfig
from uvar_tune.data import Order, TokenCache
from uvar_tune.errors import ConfigError
from uvar_tune.training.config import RunContext, resolve_precision
from uvar_tune.training.loop import Event, TrainingWarning, run_training, unwrap

NOISE = 2  # purpose of a draw, next to ORDER and CROPS of data.order: noise of the image at a position
TERMS = ("total", "ce", "second_order", "semantic_entropy")
_POINTS = 200  # Progress events of a training whose interval is not set


def train(
    model: nn.Module,
    vqvae,
    cache: TokenCache,
    loss: Callable[..., Any],
    config: TrainingConfig,
    run: RunContext,
    *,
    start: dict[str, Any] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Iterator[Event]:
    """Train a VAR. Settings are checked at once; the training advances as the iterator is consumed.

    Args:
        model: the VAR on ``run.device``, wrapped in DistributedDataParallel where there are several ranks.
        vqvae: the frozen tokenizer, on ``run.device``.
        cache: tokens of the training split.
        loss: (model, vqvae, tokens_BL, labels_B, noise) → LossTerms, means over the batch; ``noise`` is what the
            model's `draw_noise` returns.
        config: section ``training``. `init_from`, `fused` and `activation_checkpointing` belong to model and loss.
        run: seed, ranks, device and intervals.
        start: the state of a CheckpointEvent, whose parameters ``model`` already holds.
        stop: polled in each step; once it returns True on any rank, all end after that step with a CheckpointEvent.

    Returns:
        An iterator of Progress, CheckpointEvent and TrainingWarning. It ends with a Progress and a CheckpointEvent, or
        with a CheckpointEvent where it was stopped.

    Raises:
        ConfigError: a setting that cannot be honoured, with the nearest that can; a ``start`` of another training.
        Diverged: from the iterator.
    """
    bare = unwrap(model)
    if (tuple(bare.scales), bare.vocab_size) != (cache.scales, cache.vocab_size):
        raise ConfigError(
            f"the cache holds tokens of scales {list(cache.scales)} and {cache.vocab_size} codes, the model takes "
            f"{list(bare.scales)} and {bare.vocab_size}",
            where="tokens",
        )
    if int(cache.labels_N.max()) >= bare.num_classes:
        raise ConfigError(
            f"label {int(cache.labels_N.max())} for a model of {bare.num_classes} classes", where="tokens"
        )
    run = run.resolve(config, data_size=cache.images, points=_POINTS)
    config = config.model_copy(update={"precision": resolve_precision(config.precision, run.device)})
    if config.compile:
        bare.compile_blocks()
    return run_training(_TokenTask(model, vqvae, cache, loss, run), config, run, start=start, stop=stop)


def batch_at(
    positions: range, var, cache: TokenCache, order: Order, seed: int
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """The images at these positions of the data order, on the CPU.

    Returns:
        tokens_BL (int64), labels_B (int64) and the noise by the names of ``var.draw_noise``.
    """
    index_B, crop_B = order.at(positions)
    row_B = (index_B * cache.crops + crop_B).numpy()
    noise = var.draw_noise([seeds.generator(seed, NOISE, position) for position in positions])
    return torch.from_numpy(cache.tokens_NL[row_B].astype(np.int64)), torch.from_numpy(cache.labels_N[row_B]), noise


class _TokenTask:
    """Batches from the token cache and the caller's loss."""

    names = tuple(f"loss/{term}" for term in TERMS)

    def __init__(self, model: nn.Module, vqvae, cache: TokenCache, loss: Callable[..., Any], run: RunContext):
        self.model, self._vqvae, self._cache, self._loss = model, vqvae, cache, loss
        self.data = {**cache.source, "count": cache.images, "crops": cache.crops}
        self._seed, self._device, self._bare = run.seed, run.device, unwrap(model)
        self._order = Order(cache.images, seed=run.seed, crops=cache.crops)

    def losses(self, positions: range) -> Mapping[str, torch.Tensor]:
        tokens_BL, labels_B, noise = batch_at(positions, self._bare, self._cache, self._order, self._seed)
        noise = {name: self._to_device(value) for name, value in noise.items()}
        terms = self._loss(self.model, self._vqvae, self._to_device(tokens_BL), self._to_device(labels_B), noise)
        return {name: getattr(terms, term) for name, term in zip(self.names, TERMS, strict=True)}

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._device.type == "cuda":
            return tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor.to(self._device)

    def after_step(self, seen: int, optimizer: torch.optim.Optimizer) -> Iterator[TrainingWarning]:
        return iter(())

    def synchronize(self) -> None:
        """Nothing to reduce."""

    def extra_values(self) -> dict[str, float]:
        return {}

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """The position is the whole state."""
