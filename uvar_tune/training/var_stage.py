"""Stage 2: the VAR on cached tokens, with a frozen tokenizer.

Legend: B images of this rank's share of a step, L positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from uvar_tune import seeds
from uvar_tune.data import Order, TokenCache
from uvar_tune.errors import ConfigError
from uvar_tune.training.config import Place, Plan, resolve_precision
from uvar_tune.training.events import TrainingWarning
from uvar_tune.training.loop import Event, run, unwrap

NOISE = 2  # beside data.order's ORDER and CROPS: what is drawn for the image at a position
TERMS = ("total", "ce", "second_order", "semantic_entropy")


def train(
    model: nn.Module,
    vqvae,
    cache: TokenCache,
    *,
    loss: Callable[..., Any],
    images: int,
    batch_size: int,
    learning_rate: float,
    schedule: str,
    warmup_images: int,
    final_ratio: float,
    weight_decay: float,
    betas: tuple[float, float],
    clip: float | None,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
    precision: str = "auto",
    accumulate: int = 1,
    log_images: int,
    checkpoint_images: int,
    also_at: Sequence[int] = (),
    start: dict[str, Any] | None = None,
    ema: int | None = None,
    compile: bool = False,
    stop: Callable[[], bool] | None = None,
) -> Iterator[Event]:
    """Train a VAR; the settings are checked at once, the training goes on as the iterator is asked.

    Args:
        model: the VAR on ``device``, wrapped for data parallelism where there are several ranks.
        vqvae: frozen, on ``device``.
        loss: (model, vqvae, tokens_BL, labels_B, noise) → LossTerms, means over the batch given; noise is what the
            model's `draw_noise` gave.
        images, batch_size: training length; images a step over all ranks. log_images, checkpoint_images: multiples of it.
        also_at: numbers of images at which a CheckpointEvent comes besides.
        learning_rate, schedule, warmup_images, final_ratio: see `rate_factor`.
        precision: `auto` is bf16 autocast on GPUs that have it, else fp32.
        accumulate: forward and backward passes a step.
        start: the ``state`` of a CheckpointEvent, with the parameters of that moment already in ``model``.
        ema: half-life in images of an average of the parameters, kept beside them (in the state, under ``ema``).
        compile: compile the forward pass.
        stop: asked in each step; once it says so on any rank, the training ends after that step, with a CheckpointEvent.

    Returns:
        An iterator of Progress, CheckpointEvent and TrainingWarning. The last two events are a Progress and a CheckpointEvent (where it was
        stopped, a CheckpointEvent).

    Raises:
        ConfigError: a setting that cannot be honoured, with the nearest that can; a ``start`` of another training.
        Diverged: from the iterator.
    """
    device = torch.device(device)
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
    plan = Plan(
        images=images,
        batch_size=batch_size,
        learning_rate=learning_rate,
        schedule=schedule,
        warmup_images=warmup_images,
        final_ratio=final_ratio,
        weight_decay=weight_decay,
        betas=tuple(betas),
        clip=clip,
        seed=seed,
        precision=resolve_precision(precision, device),
        ema=ema,
        data={**cache.source, "count": cache.images, "crops": cache.crops},
    )
    place = Place(
        rank=rank,
        world_size=world_size,
        device=device,
        accumulate=accumulate,
        log_images=log_images,
        checkpoint_images=checkpoint_images,
        also_at=tuple(also_at),
        stop=stop,
    )
    place.check(plan, cache.images)
    if compile:
        bare.compile()
    return run(_Tokens(model, vqvae, cache, loss, seed, device), plan, place, start)


def batch_at(
    positions: range, var, cache: TokenCache, order: Order, seed: int
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """(tokens_BL, labels_B, the noise that ``var.draw_noise`` names) at these positions of the data order, on the CPU."""
    index_B, crop_B = order.at(positions)
    row_B = (index_B * cache.crops + crop_B).numpy()
    noise = var.draw_noise([seeds.generator(seed, NOISE, position) for position in positions])
    return torch.from_numpy(cache.tokens_NL[row_B].astype(np.int64)), torch.from_numpy(cache.labels_N[row_B]), noise


class _Tokens:
    """Batches out of the token cache, through the caller's loss."""

    names = tuple(f"loss/{term}" for term in TERMS)

    def __init__(
        self, model: nn.Module, vqvae, cache: TokenCache, loss: Callable[..., Any], seed: int, device: torch.device
    ):
        self.model, self._vqvae, self._cache, self._loss = model, vqvae, cache, loss
        self._seed, self._device, self._bare = seed, device, unwrap(model)
        self._order = Order(cache.images, seed=seed, crops=cache.crops)

    def losses(self, positions: range) -> Mapping[str, torch.Tensor]:
        tokens_BL, labels_B, drawn = batch_at(positions, self._bare, self._cache, self._order, self._seed)
        noise = {name: self._there(value) for name, value in drawn.items()}
        terms = self._loss(self.model, self._vqvae, self._there(tokens_BL), self._there(labels_B), noise)
        return {name: getattr(terms, term) for name, term in zip(self.names, TERMS, strict=True)}

    def _there(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._device.type == "cuda":
            return tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor.to(self._device)

    def after_step(self, seen: int, optimizer: torch.optim.Optimizer) -> Iterator[TrainingWarning]:
        return iter(())

    def settle(self) -> None:
        """Nothing of its own is exchanged."""

    def extra_values(self) -> dict[str, float]:
        return {}

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """All there is to continue is the position."""
