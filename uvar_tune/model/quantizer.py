"""Multi-scale residual quantization: a feature map as tokens, coarse to fine, and back (VAR, Algorithms 1 and 2).

At scale k the residual is pooled to p_k x p_k and each cell becomes its nearest code. The codes, upsampled to full size
(bicubic) and passed through φ, are added to the accumulated features and subtracted from the residual. Always float32,
also under autocast.

Legend: B batch, C code dimension, H, W = p_K, K scales, p_k the side of scale k, V codes, L = Σ p_k².
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
        """(B, C, H, W) → the same."""
        return h_BCHW * (1 - self.ratio) + super().forward(h_BCHW) * self.ratio


class SharedPhi(nn.Module):
    """One φ for all scales."""

    def __init__(self, make: Callable[[], nn.Module]):
        super().__init__()
        self.qresi = make()

    def at(self, index: int) -> nn.Module:
        """The φ with this `phi_index`."""
        return self.qresi


class PartlySharedPhi(nn.Module):
    """A few φ, each for consecutive scales."""

    def __init__(self, make: Callable[[], nn.Module], share: int):
        super().__init__()
        self.qresi_ls = nn.ModuleList(make() for _ in range(share))

    def at(self, index: int) -> nn.Module:
        """The φ with this `phi_index`."""
        return self.qresi_ls[index]


class SeparatePhi(nn.ModuleList):
    """One φ per scale."""

    def at(self, index: int) -> nn.Module:
        """The φ with this `phi_index`."""
        return self[index]


class Quantizer(nn.Module):
    """Codebook and φ.

    ``ema_vocab_hit_SV`` is unused; it makes official files load and save without a difference.

    Args:
        vocab_size: V.
        code_dim: C.
        scales: (p_1, …, p_K).
        quant_resi: weight r of φ's convolution; 0 leaves φ out.
        share: number of φ: 0 = one per scale, 1 = one for all, else this many, spread over the scales.
        beta: weight of the commitment term.
    """

    def __init__(
        self, vocab_size: int, code_dim: int, scales: Sequence[int], quant_resi: float, share: int, beta: float
    ):
        super().__init__()
        self.scales, self.beta, self.share = tuple(scales), beta, share
        ratio = abs(quant_resi)

        def make() -> nn.Module:
            return Phi(code_dim, ratio) if ratio > 1e-6 else nn.Identity()

        if share == 0:
            self.quant_resi = SeparatePhi(make() for _ in self.scales)
        elif share == 1:
            self.quant_resi = SharedPhi(make)
        else:
            self.quant_resi = PartlySharedPhi(make, share)
        self.register_buffer("ema_vocab_hit_SV", torch.zeros(len(self.scales), vocab_size))
        self.embedding = nn.Embedding(vocab_size, code_dim)
        # The encoder reaches small codes; of codes drawn from N(0, 1) a handful would receive all assignments.
        nn.init.uniform_(self.embedding.weight, -1 / vocab_size, 1 / vocab_size)

    def nearest(self, residual_BCHW: torch.Tensor, k: int) -> torch.Tensor:
        """Indices (B, p_k²) of the codes nearest to the residual, pooled to scale k; the lowest index on a tie."""
        pooled = residual_BCHW if k == len(self.scales) - 1 else _pool(residual_BCHW, self.scales[k])
        z_NC, codes_VC = pooled.permute(0, 2, 3, 1).flatten(0, 2), self.embedding.weight.detach()
        squares_NV = z_NC.square().sum(1, keepdim=True) + codes_VC.square().sum(1)
        return torch.addmm(squares_NV, z_NC, codes_VC.T, alpha=-2).argmin(1).view(len(residual_BCHW), -1)

    def decode_scale(self, tokens_Bl: torch.Tensor, k: int) -> torch.Tensor:
        """The contribution of scale k to the features: φ(bicubic(codes)), (B, C, H, W)."""
        side, full = self.scales[k], self.scales[-1]
        h_BChw = self.embedding(tokens_Bl).transpose(1, 2).unflatten(2, (side, side))
        if k != len(self.scales) - 1:
            h_BChw = F.interpolate(h_BChw, size=(full, full), mode="bicubic")
        index = phi_index(k, len(self.scales), self.share or len(self.scales))
        with torch.autocast(h_BChw.device.type, enabled=False):
            return self.quant_resi.at(index)(h_BChw.contiguous())

    def next_input(self, features_BCHW: torch.Tensor, k: int) -> torch.Tensor:
        """Input of the transformer at scale k, (B, p_k², C), from the features accumulated over the coarser scales."""
        return _pool(features_BCHW, self.scales[k]).flatten(2).transpose(1, 2)

    def zeros(self, batch: int) -> torch.Tensor:
        """Accumulated features before the first scale: zeros (B, C, H, W)."""
        weight, full = self.embedding.weight, self.scales[-1]
        return weight.new_zeros(batch, weight.shape[1], full, full)

    @torch.no_grad()
    def encode(self, features_BCHW: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Tokens and teacher input in one pass.

        Returns:
            A list of (B, p_k²) int64, coarse to fine, and `teacher_input` of these tokens.
        """
        residual, accumulated = features_BCHW.float().clone(), self.zeros(len(features_BCHW))
        tokens: list[torch.Tensor] = []
        inputs: list[torch.Tensor] = []
        for k in range(len(self.scales)):
            tokens.append(self.nearest(residual, k))
            added = self.decode_scale(tokens[k], k)
            residual.sub_(added)
            if k + 1 < len(self.scales):
                accumulated.add_(added)
                inputs.append(self.next_input(accumulated, k + 1))
        return tokens, _join(inputs, accumulated)

    def features(self, tokens: Sequence[torch.Tensor]) -> torch.Tensor:
        """Features (B, C, H, W) accumulated over all scales."""
        return sum((self.decode_scale(part, k) for k, part in enumerate(tokens)), start=self.zeros(len(tokens[0])))

    @torch.no_grad()
    def teacher_input(self, tokens: Sequence[torch.Tensor]) -> torch.Tensor:
        """(B, L - p_1², C) float32: for each scale but the first, the features of the coarser ones, pooled to it."""
        accumulated, inputs = self.zeros(len(tokens[0])), []
        for k in range(len(self.scales) - 1):
            accumulated.add_(self.decode_scale(tokens[k], k))
            inputs.append(self.next_input(accumulated, k + 1))
        return _join(inputs, accumulated)

    def forward(self, features_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """Quantize for training.

        Returns:
            Features (B, C, H, W) with straight-through gradient; vq_loss, the mean over scales of
            β·mse(sg[f̂_k], f) + mse(f̂_k, sg[f]), f̂_k the features accumulated up to k; tokens as `encode`.
        """
        with torch.autocast(features_BCHW.device.type, enabled=False):
            f = features_BCHW.float()
            target, residual = f.detach(), f.detach().clone()
            accumulated, loss = self.zeros(len(f)), f.new_zeros(())
            tokens: list[torch.Tensor] = []
            for k in range(len(self.scales)):
                tokens.append(self.nearest(residual, k))
                added = self.decode_scale(tokens[k], k)
                accumulated, residual = accumulated + added, residual - added.detach()
                loss = loss + self.beta * F.mse_loss(accumulated.detach(), f) + F.mse_loss(accumulated, target)
            return f + (accumulated - f).detach(), loss / len(self.scales), tokens


def _pool(features_BCHW: torch.Tensor, side: int) -> torch.Tensor:
    return F.adaptive_avg_pool2d(features_BCHW, side)


def _join(inputs: list[torch.Tensor], features_BCHW: torch.Tensor) -> torch.Tensor:
    if inputs:
        return torch.cat(inputs, dim=1)
    return features_BCHW.new_zeros(len(features_BCHW), 0, features_BCHW.shape[1])
