"""What a block is made of besides attention, each with a gradient that walks over its activations as seldom as it can.

Autograd's own chain for these multiplies by 1, and takes fresh memory for every step of it. On a CPU in float32 that is a
twentieth of the training step, so there the gradients are written out; elsewhere the plain operations run.

Legend: B batch, L positions, C width, M hidden width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

EPS = 1e-6
_gelu_backward = torch.ops.aten.gelu_backward.grad_input
_norm_backward = torch.ops.aten.native_layer_norm_backward


def modulate(x_BLC: torch.Tensor, scale_B1C: torch.Tensor, shift_B1C: torch.Tensor) -> torch.Tensor:
    """LN(x)·(1 + scale) + shift."""
    if _written_out(x_BLC, scale_B1C, shift_B1C):
        return _Modulate.apply(x_BLC, scale_B1C, shift_B1C)
    return torch.addcmul(shift_B1C, F.layer_norm(x_BLC, x_BLC.shape[-1:], eps=EPS), 1 + scale_B1C)


def gated(x_BLC: torch.Tensor, branch_BLC: torch.Tensor, gamma_B1C: torch.Tensor) -> torch.Tensor:
    """x + gamma·branch."""
    if _written_out(x_BLC, branch_BLC, gamma_B1C):
        return _Gated.apply(x_BLC, branch_BLC, gamma_B1C)
    return torch.addcmul(x_BLC, branch_BLC, gamma_B1C)


def feed_forward(x_BLC: torch.Tensor, weight1_MC: torch.Tensor, bias1_M: torch.Tensor, weight2_CM: torch.Tensor,
                 bias2_C: torch.Tensor) -> torch.Tensor:
    """W2·gelu(W1·x + b1) + b2, the gelu that of the tanh."""
    parts = (x_BLC, weight1_MC, bias1_M, weight2_CM, bias2_C)
    if _written_out(*parts):
        return _FeedForward.apply(*parts)
    return F.linear(F.gelu(F.linear(x_BLC, weight1_MC, bias1_M), approximate="tanh"), weight2_CM, bias2_C)


def _written_out(*tensors: torch.Tensor) -> bool:
    alike = all(tensor.device.type == "cpu" and tensor.dtype == tensors[0].dtype for tensor in tensors)
    return alike and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


class _Modulate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_BLC, scale_B1C, shift_B1C):
        normal_BLC, mean, deviation = torch.native_layer_norm(x_BLC, x_BLC.shape[-1:], None, None, EPS)
        factor_B1C = 1 + scale_B1C
        ctx.save_for_backward(x_BLC, normal_BLC, mean, deviation, factor_B1C)
        return torch.addcmul(shift_B1C, normal_BLC, factor_B1C)

    @staticmethod
    @once_differentiable
    def backward(ctx, g_BLC):
        x_BLC, normal_BLC, mean, deviation, factor_B1C = ctx.saved_tensors
        g_x, _, _ = _norm_backward(g_BLC * factor_B1C, x_BLC, x_BLC.shape[-1:], mean, deviation, None, None,
                                   [True, False, False])
        return g_x, (g_BLC * normal_BLC).sum(1, keepdim=True), g_BLC.sum(1, keepdim=True)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_BLC, branch_BLC, gamma_B1C):
        ctx.save_for_backward(branch_BLC, gamma_B1C)
        return torch.addcmul(x_BLC, branch_BLC, gamma_B1C)

    @staticmethod
    @once_differentiable
    def backward(ctx, g_BLC):
        branch_BLC, gamma_B1C = ctx.saved_tensors
        return g_BLC, g_BLC * gamma_B1C, (g_BLC * branch_BLC).sum(1, keepdim=True)


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_BLC, weight1_MC, bias1_M, weight2_CM, bias2_C):
        x_NC = x_BLC.flatten(0, 1)
        before_NM = F.linear(x_NC, weight1_MC, bias1_M)
        after_NM = F.gelu(before_NM, approximate="tanh")
        ctx.save_for_backward(x_NC, before_NM, after_NM, weight1_MC, weight2_CM)
        return F.linear(after_NM, weight2_CM, bias2_C).view(*x_BLC.shape[:2], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx, g_BLC):
        x_NC, before_NM, after_NM, weight1_MC, weight2_CM = ctx.saved_tensors
        g_NC = g_BLC.flatten(0, 1)
        g_NM = g_NC @ weight2_CM
        _gelu_backward(g_NM, before_NM, approximate="tanh", grad_input=g_NM)  # in place: nobody else has it
        g_x = (g_NM @ weight1_MC).view(g_BLC.shape[0], g_BLC.shape[1], -1)
        return g_x, g_NM.T @ x_NC, g_NM.sum(0), g_NC.T @ after_NM, g_NC.sum(0)
