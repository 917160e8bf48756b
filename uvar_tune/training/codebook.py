"""Keeping the codes of a tokenizer in use: start from the data, restart dead ones, count what is used at each scale.

Everything is the same on all ranks: counts are summed over them, the vectors for new codes come from images that every
rank encodes alike, and rank 0's codebook is sent round after each change.

Legend: B images, K scales, V codes, C code dimension, M candidate vectors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

from uvar_tune.model import VQVAE
from uvar_tune.model.quantizer import Phi
from uvar_tune.model.scales import phi_index


@torch.no_grad()
def residuals(vqvae: VQVAE, images_B3HW: torch.Tensor) -> torch.Tensor:
    """(M, C): the vectors for which codes are sought, of all scales, with the present codebook."""
    quantizer = vqvae.quantize
    rest = vqvae.quant_conv(vqvae.encoder(images_B3HW)).float()
    found = []
    for k in range(len(vqvae.scales)):
        found.append(quantizer.next_input(rest, k).flatten(0, 1))
        rest = rest - quantizer.explain(quantizer.nearest(rest, k), k)
    return torch.cat(found)


@torch.no_grad()
def start_codebook(vqvae: VQVAE, images_B3HW: torch.Tensor, generator: torch.Generator) -> None:
    """Codes at the features of images, drawn so that they lie apart (k-means++), the first a share of them pooled."""
    quantizer = vqvae.quantize
    features = vqvae.quant_conv(vqvae.encoder(images_B3HW)).float()
    candidates = torch.cat([quantizer.next_input(features, k).flatten(0, 1) for k in range(len(vqvae.scales))])
    vqvae.codebook_VC.copy_(spread(candidates, torch.empty(0, vqvae.code_dim), vqvae.vocab_size, generator))


def spread(
    candidates_MC: torch.Tensor, present_NC: torch.Tensor, count: int, generator: torch.Generator
) -> torch.Tensor:
    """``count`` candidates, each drawn with a probability in proportion to its squared distance to all chosen so far.

    Where candidates are fewer than distinct vectors needed, some are drawn again.
    """
    device = candidates_MC.device
    if len(present_NC):
        distance_M = torch.cdist(candidates_MC, present_NC.to(device)).min(1).values.square()
    else:
        distance_M = torch.ones(len(candidates_MC), device=device)
    chosen = []
    for draw in torch.rand(count, generator=generator, dtype=torch.float64).tolist():
        heap_M = distance_M.double().cumsum(0)
        index = int(torch.searchsorted(heap_M, heap_M[-1] * draw, right=True).clamp_(max=len(candidates_MC) - 1))
        chosen.append(candidates_MC[index])
        distance_M = torch.minimum(distance_M, (candidates_MC - candidates_MC[index]).square().sum(1))
        if not len(present_NC) and len(chosen) == 1:
            distance_M = (candidates_MC - candidates_MC[index]).square().sum(1)
    return torch.stack(chosen)


def idle_parameters(vqvae: VQVAE) -> list[torch.nn.Parameter]:
    """Those of a residual convolution that serves no scale (there may be more of them than scales)."""
    quantizer, count = vqvae.quantize, len(vqvae.scales)
    serving = {id(quantizer.quant_resi.of(phi_index(k, count, quantizer.share or count))) for k in range(count)}
    return [
        parameter
        for module in quantizer.quant_resi.modules()
        if isinstance(module, Phi) and id(module) not in serving
        for parameter in module.parameters()
    ]


class Usage:
    """Counts which codes were used at which scale during a window of images."""

    def __init__(self, vqvae: VQVAE, world_size: int):
        self._world_size = world_size
        self._fresh_KV = torch.zeros(len(vqvae.scales), vqvae.vocab_size, device=vqvae.codebook_VC.device)
        self.counts_KV = torch.zeros_like(self._fresh_KV)

    def add(self, tokens: Sequence[torch.Tensor]) -> None:
        for row_V, part in zip(self._fresh_KV, tokens, strict=True):
            row_V.add_(torch.bincount(part.flatten(), minlength=len(row_V)))

    def settle(self) -> None:
        """Add what the ranks have counted since."""
        if self._world_size > 1:
            dist.all_reduce(self._fresh_KV)
        self.counts_KV += self._fresh_KV
        self._fresh_KV.zero_()

    def shares(self) -> dict[str, float]:
        """`code_usage`: the share of codes used at any scale; `code_usage/scale_k`: at scale k, from 1."""
        used_KV = self.counts_KV > 0
        found = {"code_usage": float(used_KV.any(0).float().mean())}
        return found | {f"code_usage/scale_{k}": share for k, share in enumerate(used_KV.float().mean(1).tolist(), 1)}


@torch.no_grad()
def restart(
    vqvae: VQVAE,
    dead_n: torch.Tensor,
    images_B3HW: torch.Tensor,
    generator: torch.Generator,
    optimizer: torch.optim.Optimizer,
    world_size: int,
) -> None:
    """Move the dead codes to present residual vectors that no code serves well, and forget their momenta."""
    weight_VC = vqvae.codebook_VC
    alive_V = torch.ones(len(weight_VC), dtype=torch.bool, device=weight_VC.device)
    alive_V[dead_n] = False
    weight_VC[dead_n] = spread(residuals(vqvae, images_B3HW), weight_VC[alive_V], len(dead_n), generator)
    if world_size > 1:
        dist.broadcast(weight_VC, 0)
    for name in ("exp_avg", "exp_avg_sq"):
        if name in optimizer.state[weight_VC]:
            optimizer.state[weight_VC][name][dead_n] = 0
