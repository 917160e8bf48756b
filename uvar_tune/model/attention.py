"""Self-attention of the VAR: projections and block-causal attention over scales.

A position attends to its own scale and all coarser ones, so the queries of one scale see exactly a prefix of the keys.
Attention over that prefix needs no mask: nothing is computed and discarded, and no L x L mask exists. Measured on one
CPU thread, forward and backward, 64 channels a head: 680 positions 27.9 ms against 34.0 ms under one mask; 155
positions 13.4 ms under one mask against 17.4 ms with one call per scale, hence `MASKED_POSITIONS`.

Legend: B batch, H heads, L positions, d head dimension, C = H·d.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from uvar_tune.model.scales import boundaries, level_L

MAX_LOG_SCALE = math.log(100)
MASKED_POSITIONS = 160  # scales that end before this position share one call under a mask
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]  # (q, k, v, scale) → (B, H, L, d)


class SelfAttention(nn.Module):
    """Fused projection without key bias, attention by ``attend``, output projection."""

    def __init__(self, width: int, heads: int, l2_norm: bool):
        super().__init__()
        self.heads, self.l2_norm = heads, l2_norm
        self.scale = 1.0 if l2_norm else 0.25 / math.sqrt(width // heads)
        if l2_norm:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, heads, 1, 1), math.log(4.0)))
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.mat_qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BLC: torch.Tensor, attend: Attend) -> torch.Tensor:
        """(B, L, C) → the same."""
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        qkv_BL3Hd = F.linear(x_BLC, self.mat_qkv.weight, bias).unflatten(-1, (3, self.heads, -1))
        if self.l2_norm:
            sharpness_H = self.scale_mul_1H11.clamp_max(MAX_LOG_SCALE).exp().flatten()
            q_BHLd, k_BHLd, v_BHLd = UnitHeads.apply(qkv_BL3Hd, sharpness_H)
        else:
            q_BHLd, k_BHLd, v_BHLd = qkv_BL3Hd.permute(2, 0, 3, 1, 4).unbind(0)
        mixed_BHLd = attend(q_BHLd, k_BHLd, v_BHLd, self.scale)
        return self.proj(mixed_BHLd.transpose(1, 2).flatten(2))


class UnitHeads(torch.autograd.Function):
    """L2 normalization of queries and keys: |q| = ``sharpness_H``, |k| = 1.

    One autograd function, because the chain of PyTorch's own passes over queries and keys twice as often and gathers
    the three gradients by a copy. Norms and scalar products are at least float32.
    """

    @staticmethod
    def forward(ctx, qkv_BL3Hd: torch.Tensor, sharpness_H: torch.Tensor):
        """(q, k, v), each (B, H, L, d), from their joint projection."""
        qk_BL2Hd, exact = qkv_BL3Hd[:, :, :2], torch.promote_types(qkv_BL3Hd.dtype, torch.float32)
        factor_BL2H1 = torch.linalg.vector_norm(qk_BL2Hd, dim=-1, keepdim=True, dtype=exact).clamp_min(1e-12)
        factor_BL2H1.reciprocal_()[:, :, 0].mul_(sharpness_H[:, None])
        unit_BL2Hd = (qk_BL2Hd * factor_BL2H1).to(qkv_BL3Hd.dtype)
        ctx.save_for_backward(unit_BL2Hd, factor_BL2H1, sharpness_H)
        q, k = unit_BL2Hd.permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, qkv_BL3Hd[:, :, 2].transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients_BHLd: torch.Tensor):
        """Gradients of y = s·x/|x|: s/|x|·(g - y·(y·g)/s²) for x, Σ y·g/s for s."""
        unit_BL2Hd, factor_BL2H1, sharpness_H = ctx.saved_tensors
        out = unit_BL2Hd.new_empty(*unit_BL2Hd.shape[:2], 3, *unit_BL2Hd.shape[3:])
        for i, length_H in enumerate((sharpness_H, torch.ones_like(sharpness_H))):
            g, y = gradients_BHLd[i].transpose(1, 2), unit_BL2Hd[:, :, i]
            along = (y * g).sum(-1, keepdim=True, dtype=factor_BL2H1.dtype)
            if i == 0:
                sharpness_gradient_H = along.sum((0, 1)).flatten() / sharpness_H
            along = (along / length_H[:, None] ** 2).to(y.dtype)
            torch.mul(torch.addcmul(g, y, along, value=-1), factor_BL2H1[:, :, i].to(y.dtype), out=out[:, :, i])
        out[:, :, 2] = gradients_BHLd[2].transpose(1, 2)
        return out, sharpness_gradient_H


class PrefixAttention:
    """Attention over all positions: the queries of each scale attend to the keys up to its end.

    The first, small scales share one call with a small mask, which is faster than one call each.
    """

    def __init__(self, scales: Sequence[int]):
        bounds = boundaries(scales)
        self.together = max(k for k, (_, end) in enumerate(bounds, start=1) if k == 1 or end <= MASKED_POSITIONS)
        self.first = tuple(scales[: self.together])
        self.bounds = [(0, bounds[self.together - 1][1]), *bounds[self.together :]]

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        """(q, k, v), each (B, H, L, d) → (B, H, L, d)."""
        mask = _mask_on(self.first, q.device, q.dtype) if self.together > 1 else None
        parts: list[torch.Tensor] = []
        for start, end in self.bounds:
            parts.append(
                F.scaled_dot_product_attention(
                    q[:, :, start:end], k[:, :, :end], v[:, :, :end], attn_mask=None if start else mask, scale=scale
                )
            )
        return torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]


def prefix_mask(scales: Sequence[int]) -> torch.Tensor:
    """(L, L) float32: 0 if level(j) <= level(i), so that position i sees j; else -inf."""
    level = level_L(scales)
    return torch.zeros(len(level), len(level)).masked_fill_(level[:, None] < level, -torch.inf)


@lru_cache(maxsize=32)
def _mask_on(scales: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    with torch.inference_mode(False):  # cached beyond the call, also for calls with gradients
        return prefix_mask(scales).to(device, dtype)


class LayerCache:
    """Key-value cache of one layer while sampling, for the ``length`` positions of all scales but the last."""

    def __init__(self, length: int):
        self.length, self.filled = length, 0
        self.k: torch.Tensor | None = None
        self.v: torch.Tensor | None = None

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        """(q, k, v), each (B, H, L, d) → (B, H, L, d)."""
        end = self.filled + k.shape[2]
        if end <= self.length:
            if self.k is None:
                shape = (*k.shape[:2], self.length, k.shape[3])
                self.k, self.v = k.new_empty(shape), v.new_empty(shape)
            self.k[:, :, self.filled : end], self.v[:, :, self.filled : end] = k, v
            self.filled = end
            k, v = self.k[:, :, :end], self.v[:, :, :end]
        elif self.k is not None:  # the last scale is not cached: nothing follows
            k, v = torch.cat((self.k, k), dim=2), torch.cat((self.v, v), dim=2)
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
