"""The composite loss L = L_CE + λ1·L_2nd + λ2·L_SE (Eq. 6, 9): on logits, on hidden states, and prepared for a loop.

Every term is a mean over positions and batch. Shapes: B batch, L positions, N = B·L, V codes, C code dimensions,
K scales, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from uvar_tune.config.schema import LossConfig
from uvar_tune.objective import validate
from uvar_tune.objective.fused import fused_terms
from uvar_tune.objective.moments import moments
from uvar_tune.objective.prepared import LossTerms, PreparedLoss, prepare_loss, weighted_total
from uvar_tune.objective.semantic_entropy import semantic_entropy


class CompositeLoss:
    """The loss for a training loop: codebook, classes and reference are validated and prepared once.

        loss = CompositeLoss(LossConfig(lambda_1=0.1), scales=scales, codebook=codebook, classes=classes,
                             reference_variance=variance, device=device)
        loss(logits_BLV, targets_BL).total.backward()
        loss.fused(hidden_BLD, head.weight, head.bias, targets_BL).total.backward()  # without holding all logits

    A call checks shapes and reads one value from the device: whether targets are codes and the loss is finite.

    Args:
        config: section ``loss``, with raw weights.
        scales: patch sizes p_k, coarse to fine.
        codebook: (V, C); constant, no gradient.
        classes: (V,) integers 0 … G−1 without gaps (``build_classes``).
        reference_variance: (K,) σ²_⋆(k) ≥ 0 in units of the dispersion before normalisation (``build_reference``).
        dtype: float32 or float64, the precision of the terms.
        device: of the predictions; None is the codebook's.

    Raises:
        ConfigError: as ``composite_loss``, for everything but predictions and targets.
    """

    def __init__(
        self,
        config: LossConfig,
        *,
        scales: Sequence[int],
        codebook: torch.Tensor,
        classes: torch.Tensor,
        reference_variance: torch.Tensor,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ):
        self.prepared: PreparedLoss = prepare_loss(
            config,
            scales=scales,
            codebook=codebook,
            classes=classes,
            reference_variance=reference_variance,
            dtype=dtype,
            device=device,
        )

    def __call__(self, logits_BLV: torch.Tensor, targets_BL: torch.Tensor) -> LossTerms:
        """``composite_loss`` of these predictions."""
        return composite_terms(self.prepared, logits_BLV, targets_BL)

    def fused(
        self, hidden_BLD: torch.Tensor, weight_VD: torch.Tensor, bias_V: torch.Tensor, targets_BL: torch.Tensor
    ) -> LossTerms:
        """``fused_composite_loss`` of these hidden states."""
        return fused_terms(self.prepared, hidden_BLD, weight_VD, bias_V, targets_BL)


def composite_loss(
    logits_BLV: torch.Tensor,
    targets_BL: torch.Tensor,
    config: LossConfig,
    *,
    scales: Sequence[int],
    codebook: torch.Tensor,
    classes: torch.Tensor,
    reference_variance: torch.Tensor,
) -> LossTerms:
    """Eq. 6 with Eq. 3–5, in float32 (float64 for float64 logits) whatever the autocast state.

    Args:
        logits_BLV: predictions; L = Σ p_k².
        targets_BL: codes in [0, V).
        config: section ``loss``, with raw weights. A term whose weight is 0 is reported without entering the total.
        scales: patch sizes p_k, coarse to fine.
        codebook: (V, C); constant, no gradient.
        classes: (V,) integers 0 … G−1 without gaps (``build_classes``).
        reference_variance: (K,) σ²_⋆(k) ≥ 0 in units of the dispersion before normalisation (``build_reference``).

    Returns:
        LossTerms: scalars in nats or in the unit of the discrepancy.

    Raises:
        ConfigError: targets outside [0, V), scales that do not sum to L, classes of the wrong length or with gaps, a
            negative variance, names that are not registered, weights given as shares of the gradient.
        Diverged: the loss is not finite (NaN or infinite logits).
    """
    tensors = {"classes": classes, "reference_variance": reference_variance}
    prepared = _prepared_for(logits_BLV, logits_BLV.shape[-1], config, codebook=codebook, scales=scales, **tensors)
    return composite_terms(prepared, logits_BLV, targets_BL)


def fused_composite_loss(
    hidden_BLD: torch.Tensor,
    weight_VD: torch.Tensor,
    bias_V: torch.Tensor,
    targets_BL: torch.Tensor,
    config: LossConfig,
    **constants,
) -> LossTerms:
    """``composite_loss(F.linear(hidden_BLD, weight_VD, bias_V).float(), targets_BL, config, …)``, fused.

    Only ``total`` carries gradient, once: to the hidden states, the weight and the bias. Peak memory is a few blocks of
    logits above inputs and gradients. Under autocast the products are computed in its dtype, all else in float32.

    Args:
        hidden_BLD: last hidden states (after the head's norm).
        weight_VD: weight of the head.
        bias_V: bias of the head.
        targets_BL: codes in [0, V).
        config: as ``composite_loss``.
        constants: ``scales``, ``codebook``, ``classes`` and ``reference_variance`` as ``composite_loss``.

    Raises:
        ConfigError: as ``composite_loss``.
        Diverged: as ``composite_loss``.
    """
    prepared = _prepared_for(weight_VD, len(weight_VD), config, **constants)
    return fused_terms(prepared, hidden_BLD, weight_VD, bias_V, targets_BL)


def _prepared_for(
    predictions: torch.Tensor, vocabulary: int, config: LossConfig, *, codebook: torch.Tensor, **constants
) -> PreparedLoss:
    """Constants on the device of the predictions, in float64 for float64 predictions, else in float32."""
    validate.check_codebook(codebook, vocabulary)
    dtype = torch.float64 if predictions.dtype == torch.float64 else torch.float32
    return prepare_loss(config, codebook=codebook, dtype=dtype, device=predictions.device, **constants)


def composite_terms(prepared: PreparedLoss, logits_BLV: torch.Tensor, targets_BL: torch.Tensor) -> LossTerms:
    """``composite_loss`` with prepared constants; every term with a weight carries gradient."""
    validate.check_shapes(targets_BL, logits_BLV.shape, prepared.vocabulary, prepared.scales)
    with torch.autocast(logits_BLV.device.type, enabled=False):
        targets_N = targets_BL.flatten().long()
        codes_N = targets_N.clamp(0, prepared.vocabulary - 1)
        terms = _terms(logits_BLV.to(prepared.dtype).flatten(0, 1), codes_N, prepared)
        out_of_range = (codes_N != targets_N).any()
        validate.check_loss(terms.total, terms.ce, out_of_range, targets_BL, prepared.vocabulary)
    return terms


def mean_terms(logits_NV: torch.Tensor, prepared: PreparedLoss, reference_N: torch.Tensor) -> dict[str, torch.Tensor]:
    """Both terms, unweighted and differentiable whatever their weights."""
    p_NV = F.log_softmax(logits_NV, dim=-1).exp()
    return {
        "second_order": _second_order(p_NV, prepared, reference_N)[0].mean(),
        "semantic_entropy": _semantic_entropy(p_NV, prepared).mean(),
    }


def _second_order(p_NV, prepared: PreparedLoss, reference_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """d(σ²_θ, σ²_⋆) and σ²_θ at each position (Eq. 3, 4)."""
    dispersion_N = prepared.dispersion_N(moments(p_NV, prepared.codes, prepared.needs))
    return prepared.second_order_N(dispersion_N, reference_N), dispersion_N


def _semantic_entropy(p_NV, prepared: PreparedLoss) -> torch.Tensor:
    """H(P) over the classes at each position (Eq. 5)."""
    return semantic_entropy(moments(p_NV, prepared.codes, frozenset({"mass"})).mass_NG)


def _terms(logits_NV: torch.Tensor, targets_N: torch.Tensor, prepared: PreparedLoss) -> LossTerms:
    """All terms by autograd on the logits (Eq. 6)."""
    has_second, has_semantic = (weight > 0 for weight in prepared.weights)
    log_NV = F.log_softmax(logits_NV, dim=-1)
    ce = F.nll_loss(log_NV, targets_N)
    log_target_N = log_NV.gather(-1, targets_N[:, None]).squeeze(-1)
    first, first_N = ce, -log_target_N
    if prepared.config.first_order != "ce":
        first_N = prepared.first_order_N(log_target_N, log_NV.mean(-1))
        first = first_N.mean()
    p_NV = log_NV.exp()
    with torch.set_grad_enabled(torch.is_grad_enabled() and has_second):
        second_N, dispersion_N = _second_order(p_NV, prepared, prepared.reference_N(len(p_NV)))
    with torch.set_grad_enabled(torch.is_grad_enabled() and has_semantic):
        semantic_N = _semantic_entropy(p_NV, prepared)
    second, semantic = second_N.mean(), semantic_N.mean()
    total = weighted_total(first, second, semantic, prepared.weights)
    by_position = {
        "ce": -log_target_N.detach(),
        "first_order": first_N.detach(),
        "second_order": second_N.detach(),
        "semantic_entropy": semantic_N.detach(),
        "dispersion": dispersion_N.detach(),
    }
    return LossTerms(total, ce, first, second, semantic, by_position, prepared.scales, prepared.weights)
