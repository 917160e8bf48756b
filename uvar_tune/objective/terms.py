"""What a loss call returns: the total to differentiate, its parts, and what they are position by position.

Shapes: N = B·L positions of a batch, L positions of an image, K scales.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch

from uvar_tune.errors import Diverged

TERMS = ("first_order", "ce", "second_order", "semantic_entropy", "dispersion")


def weighted_total(first, second, semantic, lambda_1: float, lambda_2: float) -> torch.Tensor:
    """Eq. 6. A term whose λ is 0 does not enter, not even as 0 times something: the sum stays the first bit for bit."""
    total = first
    if lambda_1 > 0:
        total = total + lambda_1 * second
    if lambda_2 > 0:
        total = total + lambda_2 * semantic
    return total


@dataclass(frozen=True)
class LossTerms:
    """The total, the one to differentiate, and its parts, unweighted scalars; ``ce`` is always the plain CE.

    ``by_position`` holds, detached, each of ``TERMS`` at each of the N positions; ``dispersion`` is σ²_θ as it enters
    the discrepancy.
    """

    total: torch.Tensor
    ce: torch.Tensor
    first_order: torch.Tensor
    second_order: torch.Tensor
    semantic_entropy: torch.Tensor
    by_position: dict[str, torch.Tensor]
    scales: tuple[int, ...]
    weights: tuple[float, float]

    @cached_property
    def positions(self) -> dict[str, torch.Tensor]:
        """``total`` and each of ``TERMS`` averaged over the batch: (L,)."""
        length = sum(p * p for p in self.scales)
        found = {name: values_N.view(-1, length).mean(0) for name, values_N in self.by_position.items()}
        parts = (found[name] for name in ("first_order", "second_order", "semantic_entropy"))
        return found | {"total": weighted_total(*parts, *self.weights)}

    @property
    def per_scale(self) -> dict[str, torch.Tensor]:
        """Each entry of ``positions`` averaged over the positions of a scale: (K,)."""
        sizes = [p * p for p in self.scales]
        return {
            name: torch.stack([part.mean() for part in values_L.split(sizes)])
            for name, values_L in self.positions.items()
        }


def validate_loss(total: torch.Tensor, ce: torch.Tensor, stray: torch.Tensor, explain: Callable[[], None]) -> None:
    """The one look at the device in a step: are all targets codes, and is the loss a number?

    Args:
        stray: 0-d bool, whether a target lies outside [0, V); then ``explain`` is called, to raise with the value.

    Raises:
        Diverged: the total or the cross-entropy is not finite.
    """
    found_stray, finite = torch.stack([stray, torch.isfinite(total.detach() + ce.detach())]).tolist()
    if found_stray:
        explain()
    if not finite:
        raise Diverged(f"loss is not a finite number (total {total.item()}, cross-entropy {ce.item()})")
