"""Stage 1: the multi-scale VQ-VAE, by the same loop. Loss: mean squared error of the pixels plus the quantiser's loss, and
LPIPS where it has a weight.

Legend: B images of this rank's share of a step, K scales, V codes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional

from uvar_tune import seeds
from uvar_tune.data import ImageSet, Order
from uvar_tune.data.image_set import to_unit
from uvar_tune.errors import ConfigError
from uvar_tune.model.scales import positions as length
from uvar_tune.training.codebook import Usage, idle_parameters, restart, start_codebook
from uvar_tune.training.config import Place, Plan, resolve_precision
from uvar_tune.training.events import TrainingWarning
from uvar_tune.training.loop import Event, run, unwrap
from uvar_tune.training.perceptual import open_lpips

CODES = 3  # beside NOISE: what is drawn for the codebook
ALARM_BELOW = 0.5  # of the codes in use
_TOKENS_A_CODE = 100  # tokens seen, per code, before one that none of them was is dead
_RESTARTS_UNTIL = 0.8  # of the training; afterwards the networks settle
_START_IMAGES = 256  # whose features the first codebook is drawn from


def train_tokenizer(
    vqvae: nn.Module,
    image_set: ImageSet,
    *,
    images_total: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
    precision: str = "auto",
    accumulate: int = 1,
    log_images: int | None = None,
    checkpoint_images: int | None = None,
    lpips_weight: float = 0.0,
    lpips_network: str = "vgg",
    start: dict[str, Any] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Iterator[Event]:
    """Train a VQ-VAE; the settings are checked at once, the training goes on as the iterator is asked.

    Args:
        vqvae: on ``device``, wrapped for data parallelism where there are several ranks.
        images_total: training length. log_images, checkpoint_images: by default about 100 points, four checkpoints.
        learning_rate: the peak, after a warm-up of 2 %; falls to 2 % of it along a cosine.
        lpips_weight: of LPIPS between images and reconstructions; 0 leaves it out. lpips_network: see `open_lpips`.
        start: the ``state`` of a CheckpointEvent, with the parameters of that moment already in ``vqvae``.
        stop: asked in each step; once it says so on any rank, the training ends after that step, with a CheckpointEvent.

    Returns:
        An iterator of Progress (`loss/total`, `loss/vq`, `loss/lpips`, `reconstruction_mse`, `code_usage`, …), CheckpointEvent,
        and an TrainingWarning when fewer than half of the codes are in use.

    Raises:
        ConfigError: a setting that cannot be honoured, LPIPS without its weights among them. Diverged: from the iterator.
    """
    device, bare = torch.device(device), unwrap(vqvae)
    if image_set.image_size != bare.image_size:
        raise ConfigError(
            f"images of {image_set.image_size} px, this tokenizer takes {bare.image_size}",
            where="data.image_size",
            nearest=str(bare.image_size),
        )
    if len(image_set) < batch_size:
        raise ConfigError(
            f"{len(image_set)} images are fewer than a batch of {batch_size}",
            where="tokenizer.batch_size",
            nearest=str(len(image_set)),
        )
    if not 0 <= lpips_weight < math.inf:
        raise ConfigError(f"{lpips_weight} must be at least 0", where="tokenizer.lpips_weight")
    lpips = open_lpips(lpips_network, image_size=bare.image_size).to(device) if lpips_weight else None
    judged = {} if lpips is None else {"lpips": [lpips_network, lpips_weight]}
    steps = max(1, images_total // max(1, batch_size))
    plan = Plan(
        images=images_total,
        batch_size=batch_size,
        learning_rate=learning_rate,
        schedule="cos",
        warmup_images=images_total // 50,
        final_ratio=0.02,
        weight_decay=0.0,
        betas=(0.9, 0.95),
        clip=1.0,
        seed=seed,
        precision=resolve_precision(precision, device),
        ema=None,
        data={"images": image_set.sha256, "count": len(image_set), **judged},
    )
    place = Place(
        rank=rank,
        world_size=world_size,
        device=device,
        accumulate=accumulate,
        log_images=log_images or max(1, steps // 100) * batch_size,
        checkpoint_images=checkpoint_images or max(1, steps // 4) * batch_size,
        stop=stop,
    )
    place.check(plan, len(image_set))
    task = _Images(vqvae, image_set, plan, place, fresh=start is None, lpips=lpips, lpips_weight=lpips_weight)
    return run(task, plan, place, start)


class _Images:
    """Batches of pixels, and the care of the codebook."""

    def __init__(
        self,
        vqvae: nn.Module,
        image_set: ImageSet,
        plan: Plan,
        place: Place,
        *,
        fresh: bool,
        lpips: nn.Module | None,
        lpips_weight: float,
    ):
        self.names = ("loss/total", "loss/vq", "reconstruction_mse", *(("loss/lpips",) if lpips else ()))
        self._fresh, self._lpips, self._lpips_weight = fresh, lpips, lpips_weight
        self.model, self._images, self._plan, self._place = vqvae, image_set, plan, place
        self._bare, self._order = unwrap(vqvae), Order(len(image_set), seed=plan.seed)
        self._usage = Usage(self._bare, place.world_size)
        self._shares: dict[str, float] = {}
        self._alarmed, self._idle = False, idle_parameters(self._bare)
        tokens = length(self._bare.scales) * plan.batch_size
        self._window_images = math.ceil(_TOKENS_A_CODE * self._bare.vocab_size / tokens) * plan.batch_size

    def _start(self) -> None:
        self._fresh = False
        pixels = self._pixels(range(min(_START_IMAGES, len(self._images))))
        with torch.autocast(self._place.device.type, enabled=False):
            start_codebook(self._bare, pixels, seeds.generator(self._plan.seed, CODES, 0))
        if self._place.world_size > 1:
            dist.broadcast(self._bare.codebook_VC.detach(), 0)

    def _pixels(self, positions: range) -> torch.Tensor:
        """Images at these positions, in [-1, 1]; each epoch takes another crop of an image."""
        index_B, _ = self._order.at(positions)
        epoch_B = [position // len(self._images) for position in positions]
        return to_unit(self._images.crops(index_B, epoch_B).to(self._place.device))

    def losses(self, positions: range) -> Mapping[str, torch.Tensor]:
        if self._fresh:
            self._start()
        pixels = self._pixels(positions)
        reconstruction, vq_loss, tokens = self.model(pixels)
        self._usage.add(tokens)
        error = functional.mse_loss(reconstruction.float(), pixels)
        # data parallelism waits for a gradient of every parameter, so those without a part get a gradient of 0
        idle = sum((parameter.sum() * 0 for parameter in self._idle), start=error.new_zeros(()))
        values = {"loss/total": error + vq_loss + idle, "loss/vq": vq_loss, "reconstruction_mse": error}
        if self._lpips is not None:
            values["loss/lpips"] = self._lpips(reconstruction.float(), pixels).mean()
            values["loss/total"] = values["loss/total"] + self._lpips_weight * values["loss/lpips"]
        return values

    def after_step(self, seen: int, optimizer: torch.optim.Optimizer) -> Iterator[TrainingWarning]:
        if seen % self._window_images:
            return
        self._usage.settle()
        self._shares, counts_KV = self._usage.shares(), self._usage.counts_KV
        dead_n = (counts_KV.sum(0) == 0).nonzero().flatten()
        counts_KV.zero_()
        low = self._shares["code_usage"] < ALARM_BELOW and seen > self._window_images  # restarts had their chance
        if low and not self._alarmed:
            yield TrainingWarning(
                seen, f"only {self._shares['code_usage']:.0%} of the {self._bare.vocab_size} codes are in use"
            )
        self._alarmed = low
        if len(dead_n) and seen <= _RESTARTS_UNTIL * self._plan.images:
            batch = range(seen - self._plan.batch_size, seen)
            restart(
                self._bare,
                dead_n,
                self._pixels(batch),
                seeds.generator(self._plan.seed, CODES, seen),
                optimizer,
                self._place.world_size,
            )

    def settle(self) -> None:
        self._usage.settle()

    def extra_values(self) -> dict[str, float]:
        """Codes in use during the last whole window, or, before there is one, since the beginning."""
        return self._shares or self._usage.shares()

    def state(self) -> dict[str, Any]:
        return {"counts": self._usage.counts_KV.cpu(), "shares": self._shares, "alarmed": self._alarmed}

    def load(self, state: dict[str, Any]) -> None:
        self._usage.counts_KV.copy_(state["counts"])
        self._shares, self._alarmed = state["shares"], state["alarmed"]
