"""A loss without its predictions: the constants, validated and moved to the device once, and what a call returns.

Shapes: N = B·L positions of a batch, L = Σ p_k² positions of an image, V codes, C code dimensions, K scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from uvar_tune.config.schema import LossConfig
from uvar_tune.objective import validate
from uvar_tune.objective.discrepancy import DISCREPANCIES, FLOOR
from uvar_tune.objective.dispersion import DISPERSIONS, anchor_of
from uvar_tune.objective.first_order import FIRST_ORDER
from uvar_tune.objective.moments import Codes, Moments, prepare_codes

TERMS = ("first_order", "ce", "second_order", "semantic_entropy", "dispersion")


# Eq. 6 and 9
def weighted_total(first, second, semantic, weights: tuple[float, float]) -> torch.Tensor:
    """L = L_first + λ1·L_2nd + λ2·L_SE. A term whose λ is 0 is not added at all, so the sum stays bit-identical."""
    lambda_1, lambda_2 = weights
    total = first
    if lambda_1 > 0:
        total = total + lambda_1 * second
    if lambda_2 > 0:
        total = total + lambda_2 * semantic
    return total


@dataclass(frozen=True)
class LossTerms:
    """The value of a loss call.

    Attributes:
        total: the scalar to differentiate.
        ce: plain cross-entropy, in nats.
        first_order: the first-order term; equals ``ce`` unless the configuration names another.
        second_order: mean discrepancy of the dispersions, unweighted.
        semantic_entropy: mean semantic entropy in nats, unweighted.
        by_position: each of ``TERMS`` (N,), detached; ``dispersion`` is σ²_θ as it enters the discrepancy.
        scales: patch sizes p_k.
        weights: λ1 and λ2.
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
        means = {name: values_N.view(-1, length).mean(0) for name, values_N in self.by_position.items()}
        parts = (means[name] for name in ("first_order", "second_order", "semantic_entropy"))
        return means | {"total": weighted_total(*parts, self.weights)}

    @property
    def per_scale(self) -> dict[str, torch.Tensor]:
        """Each entry of ``positions`` averaged over the positions of a scale: (K,)."""
        sizes = [p * p for p in self.scales]
        return {
            name: torch.stack([part.mean() for part in values_L.split(sizes)])
            for name, values_L in self.positions.items()
        }


@dataclass(frozen=True)
class PreparedLoss:
    """Configuration and constants of a loss, on one device and in one precision; built by ``prepare_loss``.

    Attributes:
        config: section ``loss``, with raw weights.
        scales: patch sizes p_k.
        codes: centred codebook and classes.
        reference_L: σ²_⋆ at each position, divided by ``unit``.
        floor: smallest dispersion under a root or logarithm, divided by ``unit``.
        unit: the anchor under ``normalize: relative``, else 1.
    """

    config: LossConfig
    scales: tuple[int, ...]
    codes: Codes
    reference_L: torch.Tensor
    floor: float
    unit: float

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the terms."""
        return self.reference_L.dtype

    @property
    def vocabulary(self) -> int:
        """V."""
        return len(self.codes.centred_VC)

    @property
    def weights(self) -> tuple[float, float]:
        """λ1 and λ2."""
        return self.config.weights

    @property
    def needs(self) -> frozenset[str]:
        """The moments of which σ²_θ is a function."""
        return DISPERSIONS[self.config.dispersion].needs

    def first_order_N(self, log_target_N: torch.Tensor, mean_log_N: torch.Tensor | None) -> torch.Tensor:
        """The first-order term at each position (Eq. 2)."""
        term = FIRST_ORDER[self.config.first_order]
        return term(log_target_N, mean_log_N, self.config.epsilon, self.config.alpha)

    def dispersion_N(self, m: Moments) -> torch.Tensor:
        """σ²_θ at each position (Eq. 3)."""
        return DISPERSIONS[self.config.dispersion].of_moments(m) / self.unit

    def reference_N(self, count: int) -> torch.Tensor:
        """σ²_⋆ of the scale of each of ``count`` = B·L flattened positions."""
        return self.reference_L.repeat(count // len(self.reference_L))

    def second_order_N(self, dispersion_N: torch.Tensor, reference_N: torch.Tensor) -> torch.Tensor:
        """d(σ²_θ, σ²_⋆) at each position (Eq. 4)."""
        discrepancy = DISCREPANCIES[self.config.discrepancy]
        return discrepancy(dispersion_N, reference_N, self.floor, self.config.kl_smoothing)


def prepare_loss(
    config: LossConfig,
    *,
    scales: Sequence[int],
    codebook: torch.Tensor,
    classes: torch.Tensor,
    reference_variance: torch.Tensor,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> PreparedLoss:
    """Validate the arguments of ``CompositeLoss`` and prepare its constants.

    Args:
        config: section ``loss``, with raw weights.
        scales: patch sizes p_k, coarse to fine.
        codebook: (V, C).
        classes: (V,) semantic class of each code.
        reference_variance: (K,) σ²_⋆(k).
        dtype: float32 or float64, the precision of the terms.
        device: of the predictions; None is the codebook's.

    Raises:
        ConfigError: as ``composite_loss``, for everything but predictions and targets.
    """
    validate.check_config(config)
    validate.check_scales(scales)
    validate.check_codebook(codebook)
    validate.check_classes(classes, len(codebook))
    device = codebook.device if device is None else device
    with torch.autocast(torch.device(device).type, enabled=False):
        codes = prepare_codes(codebook.to(device), classes.to(device).long(), dtype=dtype)
        anchor = anchor_of(config.dispersion, codes)
    validate.check_anchor(anchor)
    validate.check_reference(reference_variance, scales, anchor, config.discrepancy)
    unit = anchor if config.normalize == "relative" else 1.0
    sizes_K = torch.tensor([p * p for p in scales], device=device)
    reference_K = reference_variance.detach().to(device, dtype) / unit
    return PreparedLoss(
        config, tuple(scales), codes, reference_K.repeat_interleave(sizes_K), floor=FLOOR * anchor / unit, unit=unit
    )
