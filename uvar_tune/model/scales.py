"""Positions and levels of the token maps, coarse to fine.

Legend: B batch, L = Σ p_k² positions, K scales, p_k the patch size (side) of scale k.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

OFFICIAL_SCALES = {
    10: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),  # 256 px
    14: (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64),  # 1024 px
}
SCALES_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)


def positions(scales: Sequence[int]) -> int:
    """L, the number of tokens of an image."""
    return sum(p * p for p in scales)


def boundaries(scales: Sequence[int]) -> list[tuple[int, int]]:
    """(start, end) of each scale among the L positions."""
    ends = np.cumsum([p * p for p in scales]).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


def level_L(scales: Sequence[int]) -> torch.Tensor:
    """The index of the scale at each position, int64 (L,)."""
    return torch.tensor([k for k, p in enumerate(scales) for _ in range(p * p)])


def concat(tokens: Sequence[torch.Tensor]) -> torch.Tensor:
    """tokens_BL from a list of (B, p_k²), coarse to fine."""
    return torch.cat(list(tokens), dim=1)


def split(tokens_BL: torch.Tensor, scales: Sequence[int]) -> list[torch.Tensor]:
    """The list of (B, p_k²), coarse to fine, from tokens_BL."""
    return list(tokens_BL.split([p * p for p in scales], dim=1))


def phi_index(k: int, K: int, share: int) -> int:
    """Index of the residual convolution φ of scale ``k`` of ``K``: the nearest of ``share`` ticks, the first on a tie.

    Must be float64: with 4 ticks and 10 scales two positions are tied mathematically, and rounding decides.
    """
    margin = 1 / (3 * share) if share == 4 else 1 / (2 * share)
    ticks = np.linspace(margin, 1 - margin, share)
    tick = k / (K - 1) if K > 1 else 0.0
    return int(np.argmin(np.abs(ticks - tick)))
