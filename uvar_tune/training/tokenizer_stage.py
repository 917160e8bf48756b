"""Stage 1: the multi-scale VQ-VAE, by the same loop.

The loss is the mean squared error of the pixels plus the quantizer's loss, plus LPIPS where it has a weight. The codes
are kept in use: the first codebook is drawn from the data, dead codes are restarted, usage is counted at each scale.
All ranks hold the same codebook: counts are summed over them, candidates for new codes come from images that every rank
encodes, and rank 0's codebook is broadcast after each change.

Legend: B images of this rank's share of a step, K scales, V codes, C code dimensions, M candidates, n dead codes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional

from uvar_tune import seeds
from uvar_tune.config.schema import TokenizerConfig, TrainingConfig
from uvar_tune.data import ImageSet, Order
from uvar_tune.data.image_set import to_unit
from uvar_tune.errors import ConfigError
from uvar_tune.model import VQVAE
from uvar_tune.model.quantizer import Phi
from uvar_tune.model.scales import phi_index
from uvar_tune.model.scales import positions as length
from uvar_tune.training.config import RunContext, resolve_precision
from uvar_tune.training.loop import Event, TrainingWarning, run_training, unwrap
from uvar_tune.training.perceptual import open_lpips

CODES = 3  # purpose of a draw, next to NOISE: vectors of new codes
WARN_BELOW = 0.5  # share of the codes in use
_TOKENS_A_CODE = 100  # tokens seen per code before an unused code counts as dead
_RESTARTS_UNTIL = 0.8  # of the training; afterwards the networks settle
_START_IMAGES = 256  # whose features the first codebook is drawn from
_POINTS = 100  # Progress events of a training whose interval is not set


def train_tokenizer(
    vqvae: nn.Module,
    images: ImageSet,
    config: TokenizerConfig,
    run: RunContext,
    *,
    start: dict[str, Any] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Iterator[Event]:
    """Train a VQ-VAE. Settings are checked at once; the training advances as the iterator is consumed.

    The learning rate rises over 2 % of the images and falls to 2 % of its peak along a cosine.

    Args:
        vqvae: on ``run.device``, wrapped in DistributedDataParallel where there are several ranks.
        images: of the training split.
        config: section ``tokenizer``; the fields of the network are those that ``vqvae`` was made with.
        run: seed, ranks, device and intervals.
        start: the state of a CheckpointEvent, whose parameters ``vqvae`` already holds.
        stop: polled in each step; once it returns True on any rank, all end after that step with a CheckpointEvent.

    Returns:
        An iterator of Progress (`loss/total`, `loss/vq`, `loss/lpips`, `reconstruction_mse`, `code_usage`, …),
        CheckpointEvent, and TrainingWarning when fewer than half of the codes are in use.

    Raises:
        ConfigError: a setting that cannot be honoured; LPIPS without its weights.
        Diverged: from the iterator.
    """
    bare = unwrap(vqvae)
    _check_images(images, bare, config.batch_size)
    device = torch.device(run.device)
    training = TrainingConfig(
        images=config.images,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        schedule="cos",
        warmup_images=config.images // 50,
        final_ratio=0.02,
        weight_decay=0.0,
        betas=(0.9, 0.95),
        clip=1.0,
        precision=resolve_precision("auto", device),
    )
    run = run.resolve(training, data_size=len(images), points=_POINTS)
    lpips = None
    if config.lpips_weight:
        lpips = open_lpips(config.lpips_network, image_size=bare.image_size).to(device)
    task = _ImageTask(vqvae, images, config, run, lpips=lpips, fresh=start is None)
    return run_training(task, training, run, start=start, stop=stop)


def _check_images(images: ImageSet, vqvae: VQVAE, batch_size: int) -> None:
    if images.image_size != vqvae.image_size:
        raise ConfigError(
            f"images of {images.image_size} px, this tokenizer takes {vqvae.image_size}",
            where="data.image_size",
            nearest=str(vqvae.image_size),
        )
    if len(images) < batch_size:
        raise ConfigError(
            f"{len(images)} images are fewer than a batch of {batch_size}",
            where="tokenizer.batch_size",
            nearest=str(len(images)),
        )


class _ImageTask:
    """Batches of pixels, the loss, and the care of the codebook."""

    def __init__(
        self,
        vqvae: nn.Module,
        images: ImageSet,
        config: TokenizerConfig,
        run: RunContext,
        *,
        lpips: nn.Module | None,
        fresh: bool,
    ):
        self.names = ("loss/total", "loss/vq", "reconstruction_mse", *(("loss/lpips",) if lpips else ()))
        self.data = {"images": images.sha256, "count": len(images)}
        if lpips is not None:
            self.data["lpips"] = [config.lpips_network, config.lpips_weight]
        self.model, self._images, self._config, self._run = vqvae, images, config, run
        self._lpips, self._fresh = lpips, fresh
        self._bare, self._order = unwrap(vqvae), Order(len(images), seed=run.seed)
        self._usage = CodeUsage(self._bare, run.world_size)
        self._shares: dict[str, float] = {}
        self._warned, self._idle = False, idle_parameters(self._bare)
        tokens = length(self._bare.scales) * config.batch_size
        self._window_images = math.ceil(_TOKENS_A_CODE * self._bare.vocab_size / tokens) * config.batch_size

    def _start(self) -> None:
        self._fresh = False
        pixels = self._pixels(range(min(_START_IMAGES, len(self._images))))
        with torch.autocast(self._run.device.type, enabled=False):
            start_codebook(self._bare, pixels, seeds.generator(self._run.seed, CODES, 0))
        if self._run.world_size > 1:
            dist.broadcast(self._bare.codebook_VC.detach(), 0)

    def _pixels(self, positions: range) -> torch.Tensor:
        """Images at these positions, in [-1, 1]; each epoch takes another crop of an image."""
        index_B, _ = self._order.at(positions)
        epoch_B = [position // len(self._images) for position in positions]
        return to_unit(self._images.crops(index_B, epoch_B).to(self._run.device))

    def losses(self, positions: range) -> Mapping[str, torch.Tensor]:
        if self._fresh:
            self._start()
        pixels = self._pixels(positions)
        reconstruction, vq_loss, tokens = self.model(pixels)
        self._usage.add(tokens)
        error = functional.mse_loss(reconstruction.float(), pixels)
        # DistributedDataParallel waits for a gradient of every parameter: unused ones get a gradient of 0.
        idle = sum((parameter.sum() * 0 for parameter in self._idle), start=error.new_zeros(()))
        values = {"loss/total": error + vq_loss + idle, "loss/vq": vq_loss, "reconstruction_mse": error}
        if self._lpips is not None:
            values["loss/lpips"] = self._lpips(reconstruction.float(), pixels).mean()
            values["loss/total"] = values["loss/total"] + self._config.lpips_weight * values["loss/lpips"]
        return values

    def after_step(self, seen: int, optimizer: torch.optim.Optimizer) -> Iterator[TrainingWarning]:
        if seen % self._window_images:
            return
        self._usage.synchronize()
        self._shares, counts_KV = self._usage.shares(), self._usage.counts_KV
        dead_n = (counts_KV.sum(0) == 0).nonzero().flatten()
        counts_KV.zero_()
        low = self._shares["code_usage"] < WARN_BELOW and seen > self._window_images  # after the first restart
        if low and not self._warned:
            yield TrainingWarning(
                seen, f"only {self._shares['code_usage']:.0%} of the {self._bare.vocab_size} codes are in use"
            )
        self._warned = low
        if len(dead_n) and seen <= _RESTARTS_UNTIL * self._config.images:
            pixels = self._pixels(range(seen - self._config.batch_size, seen))
            generator = seeds.generator(self._run.seed, CODES, seen)
            restart_codes(self._bare, dead_n, pixels, generator, optimizer, self._run.world_size)

    def synchronize(self) -> None:
        self._usage.synchronize()

    def extra_values(self) -> dict[str, float]:
        """Shares of the codes in use during the last whole window; before the first, since the beginning."""
        return self._shares or self._usage.shares()

    def state(self) -> dict[str, Any]:
        return {"counts": self._usage.counts_KV.cpu(), "shares": self._shares, "warned": self._warned}

    def load(self, state: dict[str, Any]) -> None:
        self._usage.counts_KV.copy_(state["counts"])
        self._shares, self._warned = state["shares"], state["warned"]


class CodeUsage:
    """Counts how often each code is used at each scale during a window of images.

    Attributes:
        counts_KV: synchronized counts.
    """

    def __init__(self, vqvae: VQVAE, world_size: int):
        self._world_size = world_size
        self._pending_KV = torch.zeros(len(vqvae.scales), vqvae.vocab_size, device=vqvae.codebook_VC.device)
        self.counts_KV = torch.zeros_like(self._pending_KV)

    def add(self, tokens: Sequence[torch.Tensor]) -> None:
        """Count the tokens of a batch, one tensor a scale."""
        for row_V, part in zip(self._pending_KV, tokens, strict=True):
            row_V.add_(torch.bincount(part.flatten(), minlength=len(row_V)))

    def synchronize(self) -> None:
        """Add the pending counts of all ranks to ``counts_KV``."""
        if self._world_size > 1:
            dist.all_reduce(self._pending_KV)
        self.counts_KV += self._pending_KV
        self._pending_KV.zero_()

    def shares(self) -> dict[str, float]:
        """`code_usage`: the share of codes used at any scale; `code_usage/scale_k`: at scale k, from 1."""
        used_KV = self.counts_KV > 0
        shares = {"code_usage": float(used_KV.any(0).float().mean())}
        return shares | {f"code_usage/scale_{k}": share for k, share in enumerate(used_KV.float().mean(1).tolist(), 1)}


@torch.no_grad()
def residuals(vqvae: VQVAE, images_B3HW: torch.Tensor) -> torch.Tensor:
    """(M, C): the vectors that are quantized at all scales, with the present codebook."""
    quantizer = vqvae.quantize
    rest = vqvae.quant_conv(vqvae.encoder(images_B3HW)).float()
    vectors = []
    for k in range(len(vqvae.scales)):
        vectors.append(quantizer.next_input(rest, k).flatten(0, 1))
        rest = rest - quantizer.decode_scale(quantizer.nearest(rest, k), k)
    return torch.cat(vectors)


@torch.no_grad()
def start_codebook(vqvae: VQVAE, images_B3HW: torch.Tensor, generator: torch.Generator) -> None:
    """Initialize the codebook with features of images, pooled to every scale, by k-means++ sampling."""
    quantizer = vqvae.quantize
    features = vqvae.quant_conv(vqvae.encoder(images_B3HW)).float()
    candidates = torch.cat([quantizer.next_input(features, k).flatten(0, 1) for k in range(len(vqvae.scales))])
    vqvae.codebook_VC.copy_(kmeans_plus_plus(candidates, torch.empty(0, vqvae.code_dim), vqvae.vocab_size, generator))


def kmeans_plus_plus(
    candidates_MC: torch.Tensor, present_NC: torch.Tensor, count: int, generator: torch.Generator
) -> torch.Tensor:
    """Draw ``count`` candidates, each in proportion to its squared distance to the nearest vector so far.

    Where there are fewer distinct candidates than ``count``, some are drawn again.
    """
    device = candidates_MC.device
    if len(present_NC):
        distance_M = torch.cdist(candidates_MC, present_NC.to(device)).min(1).values.square()
    else:
        distance_M = torch.ones(len(candidates_MC), device=device)
    vectors = []
    for draw in torch.rand(count, generator=generator, dtype=torch.float64).tolist():
        cumulative_M = distance_M.double().cumsum(0)
        index = torch.searchsorted(cumulative_M, cumulative_M[-1] * draw, right=True)
        index = int(index.clamp_(max=len(candidates_MC) - 1))
        vectors.append(candidates_MC[index])
        distance_M = torch.minimum(distance_M, (candidates_MC - candidates_MC[index]).square().sum(1))
        if not len(present_NC) and len(vectors) == 1:
            distance_M = (candidates_MC - candidates_MC[index]).square().sum(1)
    return torch.stack(vectors)


@torch.no_grad()
def restart_codes(
    vqvae: VQVAE,
    dead_n: torch.Tensor,
    images_B3HW: torch.Tensor,
    generator: torch.Generator,
    optimizer: torch.optim.Optimizer,
    world_size: int,
) -> None:
    """Move dead codes to residual vectors far from every live code, and reset their optimizer moments."""
    weight_VC = vqvae.codebook_VC
    alive_V = torch.ones(len(weight_VC), dtype=torch.bool, device=weight_VC.device)
    alive_V[dead_n] = False
    weight_VC[dead_n] = kmeans_plus_plus(residuals(vqvae, images_B3HW), weight_VC[alive_V], len(dead_n), generator)
    if world_size > 1:
        dist.broadcast(weight_VC, 0)
    for name in ("exp_avg", "exp_avg_sq"):
        if name in optimizer.state[weight_VC]:
            optimizer.state[weight_VC][name][dead_n] = 0


def idle_parameters(vqvae: VQVAE) -> list[torch.nn.Parameter]:
    """Parameters of residual convolutions that serve no scale (there may be more convolutions than scales)."""
    quantizer, count = vqvae.quantize, len(vqvae.scales)
    serving = {id(quantizer.quant_resi.at(phi_index(k, count, quantizer.share or count))) for k in range(count)}
    return [
        parameter
        for module in quantizer.quant_resi.modules()
        if isinstance(module, Phi) and id(module) not in serving
        for parameter in module.parameters()
    ]
