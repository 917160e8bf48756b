"""How much of the gradient a weight moves, and the weight that moves a given share (docs/method.md).

Shapes: B batch, L positions, N = B·L, V codes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F

from uvar_tune.config.schema import LAMBDAS, LossConfig
from uvar_tune.errors import ConfigError, Diverged, choose
from uvar_tune.objective import validate
from uvar_tune.objective.loss import mean_terms
from uvar_tune.objective.prepared import PreparedLoss, prepare_loss

TERMS = dict(zip(("second_order", "semantic_entropy"), LAMBDAS, strict=True))
_BLOCK_ELEMENTS = 2**22
"""Logits differentiated at once."""


def gradient_shares(
    logits_BLV: torch.Tensor, targets_BL: torch.Tensor, config: LossConfig, **constants
) -> dict[str, float]:
    """‖λ_t ∂L_t/∂z‖ / ‖∂L_CE/∂z‖ at the logits z, and the directions.

    Takes about the time of a loss call and the memory of a few blocks of positions. A few dozen images suffice.

    Args:
        logits_BLV: predictions; their own graph is not used.
        targets_BL: codes in [0, V).
        config: as ``composite_loss``.
        constants: ``scales``, ``codebook``, ``classes`` and ``reference_variance`` as ``composite_loss``.

    Returns:
        For each term t of ``second_order`` and ``semantic_entropy``: ``t`` the share, ``t_unit`` the share at λ = 1,
        and ``t_cosine`` the cosine with the gradient of the plain cross-entropy (0 if a gradient vanishes).

    Raises:
        ConfigError: as ``composite_loss``.
        Diverged: a gradient is not finite, or that of the cross-entropy is 0 so that no share exists.
    """
    dtype = torch.float64 if logits_BLV.dtype == torch.float64 else torch.float32
    prepared = prepare_loss(config, dtype=dtype, device=logits_BLV.device, **constants)
    validate.check_shapes(targets_BL, logits_BLV.shape, prepared.vocabulary, prepared.scales)
    validate.check_targets(targets_BL, prepared.vocabulary)
    with torch.autocast(logits_BLV.device.type, enabled=False), torch.enable_grad():
        products = _inner_products(logits_BLV.detach().flatten(0, 1), targets_BL.flatten().long(), prepared)
    ce_norm = products["ce"] ** 0.5
    if not 0.0 < ce_norm < math.inf:
        raise Diverged(f"the gradient of the cross-entropy has norm {ce_norm}: no share of it exists")
    shares = {}
    for term, weight in zip(TERMS, prepared.weights, strict=True):
        norm = products[term] ** 0.5
        shares[term] = weight * norm / ce_norm
        shares[f"{term}_unit"] = norm / ce_norm
        shares[f"{term}_cosine"] = products[f"{term}_ce"] / (norm * ce_norm) if norm > 0 else 0.0
    if not all(math.isfinite(value) for value in shares.values()):
        raise Diverged(f"gradient shares are not finite: {shares}")
    return shares


def _inner_products(logits_NV: torch.Tensor, targets_N: torch.Tensor, prepared: PreparedLoss) -> dict[str, float]:
    """⟨g_t, g_t⟩ and ⟨g_t, g_CE⟩ of the gradients of sums over positions (the common 1/N cancels in a share)."""
    sums = logits_NV.new_zeros(5, dtype=torch.float64)
    reference_N, block = prepared.reference_N(len(logits_NV)), max(1, _BLOCK_ELEMENTS // prepared.vocabulary)
    for start in range(0, len(logits_NV), block):
        part = slice(start, start + block)
        logits_nV = logits_NV[part].to(prepared.dtype, copy=True).requires_grad_()
        means = mean_terms(logits_nV, prepared, reference_N[part])
        losses = [F.cross_entropy(logits_nV, targets_N[part]), *(means[term] for term in TERMS)]
        gradients = [torch.autograd.grad(loss, logits_nV, retain_graph=True)[0] * len(logits_nV) for loss in losses]
        ce, second, semantic = (gradient.flatten() for gradient in gradients)
        sums += torch.stack([ce @ ce, second @ second, second @ ce, semantic @ semantic, semantic @ ce]).double()
    names = ("ce", "second_order", "second_order_ce", "semantic_entropy", "semantic_entropy_ce")
    return dict(zip(names, sums.tolist(), strict=True))


def lambda_for_share(share: float, unit_share: float, *, term: str) -> float:
    """The λ that moves ``share`` of the gradient.

    The share is proportional to λ at fixed predictions, so one measurement on the baseline's checkpoint converts all.

    Args:
        share: ‖λ ∂L_t/∂z‖ / ‖∂L_CE/∂z‖.
        unit_share: the share at λ = 1, ``<term>_unit`` of ``gradient_shares``.
        term: ``second_order`` or ``semantic_entropy``.

    Raises:
        ConfigError: unknown term, negative share, a term without gradient, or λ2 ≥ 1.
    """
    where = TERMS[choose(term, TERMS, "term")]
    if not 0.0 <= share < math.inf:
        raise ConfigError(f"share {share} breaks 0 <= share < infinity", where=where)
    if not 0.0 < unit_share < math.inf:
        raise ConfigError(f"share at lambda = 1 is {unit_share}: no weight of {term} moves the gradient", where=where)
    weight = share / unit_share
    if term == "semantic_entropy" and weight >= 1.0:
        raise ConfigError(
            f"share {share} needs lambda_2 = {weight:.4g}, but lambda_2 < 1",
            where=where,
            nearest=f"{0.999 * unit_share:.4g}",
        )
    return weight


def weights_for_shares(config: LossConfig, shares: Mapping[str, float]) -> LossConfig:
    """The configuration with raw weights in place of shares of the gradient.

    Args:
        config: with ``lambda_unit: share``.
        shares: of ``gradient_shares`` at the baseline's predictions; only those of terms with a weight are read.

    Raises:
        ConfigError: no weight moves a configured share.
    """
    weights = {
        name.removeprefix("loss."): lambda_for_share(share, shares[f"{term}_unit"], term=term) if share else 0.0
        for (term, name), share in zip(TERMS.items(), config.weights, strict=True)
    }
    return LossConfig.model_validate({**config.model_dump(), **weights, "lambda_unit": "raw"})
