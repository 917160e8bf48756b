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
            tangent, factor_BLH1 = torch.addcmul(g, y, along, value=-1), factor_BL2H1[:, :, i].to(y.dtype)
            if torch.compiler.is_compiling():  # ``out=`` a slice would break the graph
                out[:, :, i] = tangent * factor_BLH1
            else:
                torch.mul(tangent, factor_BLH1, out=out[:, :, i])
        out[:, :, 2] = gradients_BHLd[2].transpose(1, 2)
        return out, sharpness_gradient_H


class Prefixes(torch.autograd.Function):
    """Views (B, H, end, d) of a tensor (B, H, L, d), up to each of ascending ends, the last of which is L.

    Equal to slicing, bit for bit. The backward pass adds the gradients in place: that of slices would fill and add one
    full-size tensor per slice, at VAR-d16 and 96 images 6.1 GB a layer instead of 1.8 GB.
    """

    @staticmethod
    def forward(ctx, x_BHLd: torch.Tensor, ends: tuple[int, ...]):
        """The views."""
        ctx.ends = ends
        return tuple(x_BHLd[:, :, :end] for end in ends)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: torch.Tensor):
        """Their sum, from the last prefix to the first: the order in which autograd accumulates slices."""
        total_BHLd = gradients[-1].clone()
        for end, gradient in zip(reversed(ctx.ends[:-1]), reversed(gradients[:-1]), strict=True):
            total_BHLd[:, :, :end].add_(gradient)
        return total_BHLd, None


class PrefixAttention(nn.Module):
    """Attention over all positions: the queries of each scale attend to the keys up to its end.

    The first, small scales share one call with a small mask, which is faster than one call each.
    """

    mask: torch.Tensor | None

    def __init__(self, scales: Sequence[int]):
        super().__init__()
        bounds = boundaries(scales)
        self.together = max(k for k, (_, end) in enumerate(bounds, start=1) if k == 1 or end <= MASKED_POSITIONS)
        self.first = tuple(scales[: self.together])
        self.bounds = [(0, bounds[self.together - 1][1]), *bounds[self.together :]]
        with torch.device("cpu"):  # the values are needed, also of a network on the meta device
            mask = prefix_mask(self.first) if self.together > 1 else None
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        """(q, k, v), each (B, H, L, d) → (B, H, L, d)."""
        mask = None if self.mask is None else self.mask.to(q.device, q.dtype)
        if len(self.bounds) == 1:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        ends = tuple(end for _, end in self.bounds)
        queries = q.split([end - start for start, end in self.bounds], dim=2)
        parts = [
            F.scaled_dot_product_attention(*qkv, attn_mask=None if i else mask, scale=scale)
            for i, qkv in enumerate(zip(queries, Prefixes.apply(k, ends), Prefixes.apply(v, ends), strict=True))
        ]
        return torch.cat(parts, dim=2)


def prefix_mask(scales: Sequence[int]) -> torch.Tensor:
    """(L, L) float32: 0 if level(j) <= level(i), so that position i sees j; else -inf."""
    level = level_L(scales)
    return torch.zeros(len(level), len(level)).masked_fill_(level[:, None] < level, -torch.inf)


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
