"""Multi-scale residual quantisation: a feature map as tokens, coarse to fine, and back.

At scale k the rest of the features is pooled to p_k x p_k, each cell becomes the nearest code, and what the codes
explain (bicubic to full size, then φ) is taken from the rest. Always float32, autocast or not.

Legend: B batch, C code dimension, H, W = p_K, K scales, p_k the side of scale k, V codes, L = Σ p_k².
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from uvar_tune.model.scales import phi_index


class Phi(nn.Conv2d):
    """(1 - r)·h + r·conv(h)."""

    def __init__(self, code_dim: int, ratio: float):
        super().__init__(code_dim, code_dim, 3, padding=1)
        self.ratio = ratio

    def forward(self, h_BCHW: torch.Tensor) -> torch.Tensor:
        return h_BCHW * (1 - self.ratio) + super().forward(h_BCHW) * self.ratio


class SharedPhi(nn.Module):
    """One φ for all scales."""

    def __init__(self, make):
        super().__init__()
        self.qresi = make()

    def of(self, index: int) -> nn.Module:
        return self.qresi


class PartlySharedPhi(nn.Module):
    """A few φ, each for a run of scales."""

    def __init__(self, make, share: int):
        super().__init__()
        self.qresi_ls = nn.ModuleList(make() for _ in range(share))

    def of(self, index: int) -> nn.Module:
        return self.qresi_ls[index]


class OwnPhi(nn.ModuleList):
    """A φ for each scale."""

    def of(self, index: int) -> nn.Module:
        return self[index]


class Quantizer(nn.Module):
    """Codebook and φ. ``ema_vocab_hit_SV`` is kept only so that official files come back as they were."""

    def __init__(
        self, vocab_size: int, code_dim: int, scales: Sequence[int], quant_resi: float, share: int, beta: float
    ):
        super().__init__()
        self.scales, self.beta, self.share = tuple(scales), beta, share
        ratio = abs(quant_resi)

        def make() -> nn.Module:
            return Phi(code_dim, ratio) if ratio > 1e-6 else nn.Identity()

        if share == 0:
            self.quant_resi = OwnPhi(make() for _ in self.scales)
        elif share == 1:
            self.quant_resi = SharedPhi(make)
        else:
            self.quant_resi = PartlySharedPhi(make, share)
        self.register_buffer("ema_vocab_hit_SV", torch.zeros(len(self.scales), vocab_size))
        self.embedding = nn.Embedding(vocab_size, code_dim)
        # Small codes are all within reach of the encoder; drawn from N(0, 1), a handful of them takes everything.
        nn.init.uniform_(self.embedding.weight, -1 / vocab_size, 1 / vocab_size)

    def nearest(self, rest_BCHW: torch.Tensor, k: int) -> torch.Tensor:
        """tokens (B, p_k²) of the codes nearest to the rest, pooled to scale k; the lowest index on a tie."""
        pooled = rest_BCHW if k == len(self.scales) - 1 else _pool(rest_BCHW, self.scales[k])
        z_NC, codes_VC = pooled.permute(0, 2, 3, 1).flatten(0, 2), self.embedding.weight.detach()
        sizes_NV = z_NC.square().sum(1, keepdim=True) + codes_VC.square().sum(1)
        return torch.addmm(sizes_NV, z_NC, codes_VC.T, alpha=-2).argmin(1).view(len(rest_BCHW), -1)

    def explain(self, tokens_Bl: torch.Tensor, k: int) -> torch.Tensor:
        """What the tokens of scale k add to the features: φ(bicubic(codes)), (B, C, H, W)."""
        side, full = self.scales[k], self.scales[-1]
        h_BChw = self.embedding(tokens_Bl).transpose(1, 2).unflatten(2, (side, side))
        if k != len(self.scales) - 1:
            h_BChw = F.interpolate(h_BChw, size=(full, full), mode="bicubic")
        index = phi_index(k, len(self.scales), self.share or len(self.scales))
        with torch.autocast(h_BChw.device.type, enabled=False):
            return self.quant_resi.of(index)(h_BChw.contiguous())

    def next_input(self, features_BCHW: torch.Tensor, k: int) -> torch.Tensor:
        """What the transformer sees at scale k of the features explained so far: (B, p_k², C)."""
        return _pool(features_BCHW, self.scales[k]).flatten(2).transpose(1, 2)

    def empty(self, batch: int) -> torch.Tensor:
        """Features of which nothing is explained yet, (B, C, H, W) zeros."""
        weight, full = self.embedding.weight, self.scales[-1]
        return weight.new_zeros(batch, weight.shape[1], full, full)

    @torch.no_grad()
    def quantise(self, features_BCHW: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """(tokens, teacher input), in one pass; the teacher input is (B, L - p_1², C), float32."""
        rest, explained = features_BCHW.float().clone(), self.empty(len(features_BCHW))
        tokens: list[torch.Tensor] = []
        inputs: list[torch.Tensor] = []
        for k in range(len(self.scales)):
            tokens.append(self.nearest(rest, k))
            added = self.explain(tokens[k], k)
            rest.sub_(added)
            if k + 1 < len(self.scales):
                explained.add_(added)
                inputs.append(self.next_input(explained, k + 1))
        return tokens, _join(inputs, explained)

    def features(self, tokens: Sequence[torch.Tensor]) -> torch.Tensor:
        """The features (B, C, H, W) that the tokens of all scales explain."""
        return sum((self.explain(part, k) for k, part in enumerate(tokens)), start=self.empty(len(tokens[0])))

    @torch.no_grad()
    def teacher_input(self, tokens: Sequence[torch.Tensor]) -> torch.Tensor:
        """(B, L - p_1², C) float32: at each scale but the first, the features of all coarser ones, pooled to it."""
        explained, inputs = self.empty(len(tokens[0])), []
        for k in range(len(self.scales) - 1):
            explained.add_(self.explain(tokens[k], k))
            inputs.append(self.next_input(explained, k + 1))
        return _join(inputs, explained)

    def forward(self, features_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """(features straight through, vq_loss, tokens), for training.

        vq_loss is the mean over scales of β·mse(sg[f̂_k], f) + mse(f̂_k, sg[f]), f̂_k the features explained up to k.
        """
        with torch.autocast(features_BCHW.device.type, enabled=False):
            f = features_BCHW.float()
            target, rest = f.detach(), f.detach().clone()
            explained, loss = self.empty(len(f)), f.new_zeros(())
            tokens: list[torch.Tensor] = []
            for k in range(len(self.scales)):
                tokens.append(self.nearest(rest, k))
                added = self.explain(tokens[k], k)
                explained, rest = explained + added, rest - added.detach()
                loss = loss + self.beta * F.mse_loss(explained.detach(), f) + F.mse_loss(explained, target)
            return f + (explained - f).detach(), loss / len(self.scales), tokens


def _pool(features_BCHW: torch.Tensor, side: int) -> torch.Tensor:
    return F.adaptive_avg_pool2d(features_BCHW, side)


def _join(inputs: list[torch.Tensor], features_BCHW: torch.Tensor) -> torch.Tensor:
    if inputs:
        return torch.cat(inputs, dim=1)
    return features_BCHW.new_zeros(len(features_BCHW), 0, features_BCHW.shape[1])
