"""Fused autograd functions for float32 training on a CPU: the MLP and addcmul.

The MLP passes over the hidden units once, in pieces that stay in the cache, and overwrites the pre-activations with
the slope of the activation. Measured on one thread at 1,240 positions of width 256, forward and backward: a block takes
0.96 times as long. Keeping the attention probabilities, or fusing normalization and modulation, gained nothing in a
whole block.

Legend: B batch, L positions, C width, F hidden units, N = B·L.
"""

from __future__ import annotations

import math

import torch
from torch.autograd.function import once_differentiable

_PIECE = 1 << 17  # hidden units at a time, which fit into the cache
_TWICE, _CUBIC = 2 * math.sqrt(2 / math.pi), 0.044715  # GELU by tanh: x·σ(2·√(2/π)·(x + 0.044715·x³))


def use_fused_cpu_kernels(x: torch.Tensor) -> bool:
    """Whether the fused functions apply: training in float32 on a CPU, without autocast and torch.compile."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def addcmul(base: torch.Tensor, x_BLC: torch.Tensor, gain_B1C: torch.Tensor) -> torch.Tensor:
    """Base + x·gain, (B, L, C); ``base`` is (B, L, C) or (B, 1, C)."""
    return (
        FusedAddcmul.apply(base, x_BLC, gain_B1C)
        if use_fused_cpu_kernels(x_BLC)
        else torch.addcmul(base, x_BLC, gain_B1C)
    )


class FusedAddcmul(torch.autograd.Function):
    """`torch.addcmul` with a backward pass that takes 0.4 times as long."""

    @staticmethod
    def forward(ctx, base, x_BLC, gain_B1C):
        """Args as `addcmul`."""
        ctx.save_for_backward(x_BLC, gain_B1C)
        ctx.base_shape = base.shape
        return torch.addcmul(base, x_BLC, gain_B1C)

    @staticmethod
    @once_differentiable
    def backward(ctx, g_BLC):
        """Gradients of the three inputs."""
        x_BLC, gain_B1C = ctx.saved_tensors
        needed = ctx.needs_input_grad
        return (
            g_BLC.sum_to_size(ctx.base_shape) if needed[0] else None,
            g_BLC * gain_B1C if needed[1] else None,
            (g_BLC * x_BLC).sum_to_size(gain_B1C.shape) if needed[2] else None,
        )


class FeedForward(torch.autograd.Function):
    """fc2(GELU(fc1(x))): (B, L, C) → (B, L, C); weights (F, C), (C, F), biases (F,), (C,)."""

    @staticmethod
    def forward(ctx, x_BLC, weight1, bias1, weight2, bias2):
        """(B, L, C) → (B, L, C)."""
        x_NC = x_BLC.flatten(0, -2)
        slope_NF = x_NC @ weight1.t()
        active_NF = torch.empty_like(slope_NF)
        _activate(slope_NF, bias1, active_NF)
        ctx.save_for_backward(x_NC, active_NF, slope_NF, weight1, weight2)
        return torch.addmm(bias2, active_NF, weight2.t()).view(*x_BLC.shape[:-1], len(weight2))

    @staticmethod
    @once_differentiable
    def backward(ctx, g_BLC):
        """Gradients of the five inputs."""
        x_NC, active_NF, slope_NF, weight1, weight2 = ctx.saved_tensors
        g_NC = g_BLC.flatten(0, -2)
        hidden_NF = (g_NC @ weight2).mul_(slope_NF)
        needed = ctx.needs_input_grad
        return (
            (hidden_NF @ weight1).view(*g_BLC.shape[:-1], weight1.shape[1]) if needed[0] else None,
            hidden_NF.t() @ x_NC if needed[1] else None,
            hidden_NF.sum(0) if needed[2] else None,
            g_NC.t() @ active_NF if needed[3] else None,
            g_NC.sum(0) if needed[4] else None,
        )


def _activate(x_NF: torch.Tensor, bias: torch.Tensor, out_NF: torch.Tensor) -> None:
    """Set out to GELU(x + bias), and x to the slope of GELU there, in place."""
    rows = max(1, _PIECE // x_NF.shape[1])
    twice, pieces = x_NF.new_tensor(_TWICE), x_NF.new_empty(2, min(rows, len(x_NF)), x_NF.shape[1])
    for x, y in zip(x_NF.split(rows), out_NF.split(rows), strict=True):
        gate, rest = pieces[0, : len(x)], pieces[1, : len(x)]
        x.add_(bias)
        torch.addcmul(twice, x, x, value=_TWICE * _CUBIC, out=gate)
        gate.mul_(x).sigmoid_()
        torch.mul(x, gate, out=y)
        torch.addcmul(y, y, gate, value=-1, out=rest)  # x·σ·(1 - σ)
        torch.addcmul(twice, x, x, value=3 * _TWICE * _CUBIC, out=x)
        torch.addcmul(gate, x, rest, out=x)
