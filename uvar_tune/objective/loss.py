"""The doors of the objective: on logits, on hidden states, and both with constants prepared once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from uvar_tune.objective import validate
from uvar_tune.objective.composite import composite_terms
from uvar_tune.objective.fused import fused_terms
from uvar_tune.objective.prepared import Objective, prepare_objective
from uvar_tune.objective.terms import LossTerms


class CompositeLoss:
    """The objective for a training loop: codebook, classes and reference are validated and prepared here, once.

        loss = CompositeLoss(**settings, device=device)
        loss(logits_BLV, targets_BL).total.backward()                           # = composite_loss
        loss.fused(hidden_BLD, head.weight, head.bias, targets_BL).total.backward()  # = fused_composite_loss

    A call checks shapes, and reads the device once: whether targets are codes and the loss is a finite number.

    Args:
        settings: as ``composite_loss``, or those of ``prepare_objective`` (``dtype`` and ``device`` too).
    """

    def __init__(self, **settings):
        self.objective: Objective = prepare_objective(**settings)

    def __call__(self, logits_BLV: torch.Tensor, targets_BL: torch.Tensor) -> LossTerms:
        return composite_terms(self.objective, logits_BLV, targets_BL)

    def fused(
        self, hidden_BLD: torch.Tensor, weight_VD: torch.Tensor, bias_V: torch.Tensor, targets_BL: torch.Tensor
    ) -> LossTerms:
        return fused_terms(self.objective, hidden_BLD, weight_VD, bias_V, targets_BL)


def _prepared_for(predictions: torch.Tensor, vocabulary: int, codebook: torch.Tensor, **settings) -> Objective:
    """Constants on the device of the predictions, in float64 for float64 predictions, else in float32."""
    validate.check_codebook(codebook, vocabulary)
    dtype = torch.float64 if predictions.dtype == torch.float64 else torch.float32
    return prepare_objective(codebook=codebook, dtype=dtype, device=predictions.device, **settings)


def composite_loss(
    logits_BLV: torch.Tensor,
    targets_BL: torch.Tensor,
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
) -> LossTerms:
    """Eq. 6 with Eq. 3–5, in float32 (float64 for float64 logits) whatever autocast says.

    Args:
        logits_BLV: predictions; L = Σ p_k².
        targets_BL: codes in [0, V).
        scales: patch sizes p_k, coarse to fine.
        codebook: (V, C); constant, no gradient.
        classes: (V,) integers 0 … G−1 without gaps (``build_classes``).
        reference_variance: (K,) σ²_⋆(k) >= 0 in units of the dispersion before normalisation (``build_reference``).
        lambda_1, lambda_2: weights; 0 <= λ2 < 1. A term whose weight is 0 is reported without entering the total.
        dispersion: ``probability`` or ``embedding``. discrepancy: ``squared``, ``kl`` or ``wasserstein``.
        normalize: ``relative`` divides both variances by the anchor, ``none`` is the literal form.
        kl_smoothing: ε of ``kl``; 0 is the literal KL.
        first_order: ``ce``, ``label_smoothing`` (ε = ``epsilon``) or ``label_relaxation`` (α = ``alpha``).

    Returns:
        LossTerms, scalars in nats or in the discrepancy's unit.

    Raises:
        ConfigError: targets outside [0, V), scales that do not sum to L, classes of the wrong length or with gaps, a
            negative variance, weights out of range, unknown names, meaningless combinations.
        Diverged: the loss is not finite (NaN or infinite logits).
    """
    objective = _prepared_for(
        logits_BLV,
        logits_BLV.shape[-1],
        codebook,
        scales=scales,
        classes=classes,
        reference_variance=reference_variance,
        lambda_1=lambda_1,
        lambda_2=lambda_2,
        dispersion=dispersion,
        discrepancy=discrepancy,
        normalize=normalize,
        kl_smoothing=kl_smoothing,
        first_order=first_order,
        epsilon=epsilon,
        alpha=alpha,
    )
    return composite_terms(objective, logits_BLV, targets_BL)


def fused_composite_loss(
    hidden_BLD: torch.Tensor,
    weight_VD: torch.Tensor,
    bias_V: torch.Tensor,
    targets_BL: torch.Tensor,
    **settings,
) -> LossTerms:
    """``composite_loss(F.linear(hidden_BLD, weight_VD, bias_V).float(), targets_BL, **settings)``, fused.

    Only ``total`` carries gradient, once: to the hidden states, the weight and the bias. Peak memory is a few blocks of
    logits above inputs and gradients. Under autocast the products are computed in its dtype, all else in float32.

    Args:
        hidden_BLD: last hidden states (after the head's norm); weight_VD, bias_V: the head.
        targets_BL, settings: as ``composite_loss``.

    Raises:
        ConfigError, Diverged: as ``composite_loss``.
    """
    objective = _prepared_for(weight_VD, len(weight_VD), **settings)
    return fused_terms(objective, hidden_BLD, weight_VD, bias_V, targets_BL)
