"""Block of the VAR: gated attention and MLP on inputs whose normalization the class modulates (AdaLN).

Legend: B batch, L positions, C width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from uvar_tune.model.attention import Attend, SelfAttention
from uvar_tune.model.cpu import FeedForward, addcmul, use_fused_cpu_kernels

EPS = 1e-6
Modulation = tuple[torch.Tensor, ...]  # gamma1, gamma2, scale1, scale2, shift1, shift2, each (B, 1, C)


def modulate(x_BLC: torch.Tensor, scale_B1C: torch.Tensor, shift_B1C: torch.Tensor) -> torch.Tensor:
    """LN(x)·(1 + scale) + shift."""
    return addcmul(shift_B1C, F.layer_norm(x_BLC, x_BLC.shape[-1:], eps=EPS), 1 + scale_B1C)


class SharedAdaLinear(nn.Linear):
    """One AdaLN projection for all blocks."""

    def __init__(self, width: int):
        super().__init__(width, 6 * width)

    def forward(self, x_BC: torch.Tensor) -> torch.Tensor:
        """(B, C) → (B, 1, 6, C)."""
        return super().forward(x_BC).view(len(x_BC), 1, 6, -1)


class MLP(nn.Module):
    """fc2(GELU(fc1(x))), GELU by tanh."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x_BLC: torch.Tensor) -> torch.Tensor:
        """(B, L, C) → the same."""
        if use_fused_cpu_kernels(x_BLC):
            return FeedForward.apply(x_BLC, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
        return self.fc2(F.gelu(self.fc1(x_BLC), approximate="tanh"))


class Block(nn.Module):
    """x += gamma1·attn(modulate1(x)); x += gamma2·mlp(modulate2(x))."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, shared_aln: bool, l2_norm: bool):
        super().__init__()
        self.width = width
        if shared_aln:
            self.ada_gss = nn.Parameter(torch.empty(1, 1, 6, width))
        self.attn = SelfAttention(width, heads, l2_norm)
        self.ffn = MLP(width, round(width * mlp_ratio))
        if not shared_aln:
            self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def modulation(self, condition: torch.Tensor) -> Modulation:
        """Modulation from the class embedding (B, C), or from the shared projection (B, 1, 6, C)."""
        if condition.ndim == 4:
            return (self.ada_gss + condition).unbind(2)
        return self.ada_lin(condition).view(-1, 1, 6, self.width).unbind(2)

    def forward(
        self, x_BLC: torch.Tensor, condition: torch.Tensor, attend: Attend, gate_2B: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Apply the block.

        Args:
            x_BLC: residual stream.
            condition: as `modulation`.
            attend: attention over the positions.
            gate_2B: factors of the two branches per image (drop path); None for 1.
        """
        return self.run(x_BLC, self.modulation(condition), attend, gate_2B)

    def run(
        self, x_BLC: torch.Tensor, modulation: Modulation, attend: Attend, gate_2B: torch.Tensor | None = None
    ) -> torch.Tensor:
        """As `forward`, with the modulation computed beforehand."""
        gamma1, gamma2, scale1, scale2, shift1, shift2 = modulation
        if gate_2B is not None:
            gamma1, gamma2 = gamma1 * gate_2B[0, :, None, None], gamma2 * gate_2B[1, :, None, None]
        x_BLC = addcmul(x_BLC, self.attn(modulate(x_BLC, scale1, shift1), attend), gamma1)
        return addcmul(x_BLC, self.ffn(modulate(x_BLC, scale2, shift2)), gamma2)


class HeadNorm(nn.Module):
    """Modulated normalization before the head: LN(x)·(1 + scale) + shift."""

    def __init__(self, width: int):
        super().__init__()
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def modulation(self, class_BC: torch.Tensor) -> Modulation:
        """(scale, shift), each (B, 1, C)."""
        return self.ada_lin(class_BC).view(len(class_BC), 1, 2, -1).unbind(2)

    def forward(self, x_BLC: torch.Tensor, class_BC: torch.Tensor) -> torch.Tensor:
        """(B, L, C) → the same."""
        return modulate(x_BLC, *self.modulation(class_BC))
