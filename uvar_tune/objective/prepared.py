"""The objective without the predictions: settings and constants, validated and brought to the device once.

Shapes: N = B·L positions of a batch, L = Σ p_k², V codes, C code dimensions, K scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from uvar_tune.objective import validate
from uvar_tune.objective.discrepancy import DISCREPANCIES, FLOOR
from uvar_tune.objective.dispersion import DISPERSIONS, anchor_of
from uvar_tune.objective.first_order import FIRST_ORDER
from uvar_tune.objective.moments import Codes, Moments, prepare_codes


@dataclass(frozen=True)
class Objective:
    """Built by ``prepare_objective``; constants on one device, in one precision."""

    scales: tuple[int, ...]
    codes: Codes
    reference_L: torch.Tensor
    floor: float
    unit: float
    lambda_1: float
    lambda_2: float
    kl_smoothing: float
    epsilon: float
    alpha: float
    dispersion: str
    discrepancy: str
    first_order: str

    @property
    def dtype(self) -> torch.dtype:
        return self.reference_L.dtype

    @property
    def vocabulary(self) -> int:
        return len(self.codes.centred_VC)

    @property
    def weights(self) -> tuple[float, float]:
        return self.lambda_1, self.lambda_2

    @property
    def needs(self) -> frozenset[str]:
        """The moments that σ²_θ is a function of."""
        return DISPERSIONS[self.dispersion].needs

    def first_order_N(self, log_target_N: torch.Tensor, mean_log_N: torch.Tensor | None) -> torch.Tensor:
        return FIRST_ORDER[self.first_order](log_target_N, mean_log_N, self.epsilon, self.alpha)

    def dispersion_N(self, m: Moments) -> torch.Tensor:
        return DISPERSIONS[self.dispersion].of_moments(m) / self.unit

    def reference_N(self, count: int) -> torch.Tensor:
        """σ²_⋆ of the scale to which each of B·L flattened positions belongs."""
        return self.reference_L.repeat(count // len(self.reference_L))

    def second_order_N(self, dispersion_N: torch.Tensor, reference_N: torch.Tensor) -> torch.Tensor:
        """d(σ²_θ, σ²_⋆) at each position (Eq. 4)."""
        return DISCREPANCIES[self.discrepancy](dispersion_N, reference_N, self.floor, self.kl_smoothing)


def prepare_objective(
    *,
    scales: Sequence[int],
    codebook: torch.Tensor,
    classes: torch.Tensor,
    reference_variance: torch.Tensor,
    lambda_1: float,
    lambda_2: float,
    dispersion: str = "embedding",
    discrepancy: str = "wasserstein",
    normalize: str = "relative",
    kl_smoothing: float = 1e-2,
    first_order: str = "ce",
    epsilon: float = 0.1,
    alpha: float = 0.1,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Objective:
    """Validate the settings of ``composite_loss`` and prepare its constants.

    Args:
        dtype: float32 or float64, in which the terms are computed. device: of the predictions; None is the codebook's.

    Raises:
        ConfigError: as ``composite_loss``, for all but the predictions and targets.
    """
    validate.check_combination(
        dispersion=dispersion, discrepancy=discrepancy, normalize=normalize, first_order=first_order
    )
    validate.check_weights(lambda_1, lambda_2, kl_smoothing, epsilon, alpha)
    validate.check_scales(scales)
    validate.check_codebook(codebook)
    validate.check_classes(classes, len(codebook))
    device = codebook.device if device is None else device
    with torch.autocast(torch.device(device).type, enabled=False):
        codes = prepare_codes(codebook.to(device), classes.to(device).long(), dtype=dtype)
        anchor = anchor_of(dispersion, codes)
    validate.check_anchor(anchor)
    validate.check_reference(reference_variance, scales, anchor, discrepancy)
    unit = anchor if normalize == "relative" else 1.0
    sizes_K = torch.tensor([p * p for p in scales], device=device)
    reference_K = reference_variance.detach().to(device, dtype) / unit
    return Objective(
        scales=tuple(scales),
        codes=codes,
        reference_L=reference_K.repeat_interleave(sizes_K),
        floor=FLOOR * anchor / unit,
        unit=unit,
        lambda_1=lambda_1,
        lambda_2=lambda_2,
        kl_smoothing=kl_smoothing,
        epsilon=epsilon,
        alpha=alpha,
        dispersion=dispersion,
        discrepancy=discrepancy,
        first_order=first_order,
    )
