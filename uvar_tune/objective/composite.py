"""The composite objective L = L_CE + λ1·L_2nd + λ2·L_SE (Eq. 6, 9), by autograd on the logits.

Every term is a mean over positions and batch. Shapes: B batch, L positions, N = B·L, V codes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from uvar_tune.objective import validate
from uvar_tune.objective.moments import moments
from uvar_tune.objective.prepared import Objective
from uvar_tune.objective.semantic_entropy import semantic_entropy
from uvar_tune.objective.terms import LossTerms, validate_loss, weighted_total


def composite_terms(objective: Objective, logits_BLV: torch.Tensor, targets_BL: torch.Tensor) -> LossTerms:
    """``composite_loss`` for prepared settings; every term with a weight carries gradient."""
    validate.check_shapes(targets_BL, logits_BLV.shape, objective.vocabulary, objective.scales)
    with torch.autocast(logits_BLV.device.type, enabled=False):
        targets_N = targets_BL.flatten().long()
        codes_N = targets_N.clamp(0, objective.vocabulary - 1)
        found = _terms(logits_BLV.to(objective.dtype).flatten(0, 1), codes_N, objective)
        stray = (codes_N != targets_N).any()
        validate_loss(found.total, found.ce, stray, lambda: validate.check_targets(targets_BL, objective.vocabulary))
    return found


def mean_terms(logits_NV: torch.Tensor, objective: Objective, reference_N: torch.Tensor) -> dict[str, torch.Tensor]:
    """Both terms, unweighted and differentiable whatever their λ."""
    p_NV = F.log_softmax(logits_NV, dim=-1).exp()
    return {
        "second_order": _second_order(p_NV, objective, reference_N)[0].mean(),
        "semantic_entropy": _semantic_entropy(p_NV, objective).mean(),
    }


def _second_order(p_NV, objective: Objective, reference_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """d(σ²_θ, σ²_⋆) and σ²_θ at each position."""
    dispersion_N = objective.dispersion_N(moments(p_NV, objective.codes, objective.needs))
    return objective.second_order_N(dispersion_N, reference_N), dispersion_N


def _semantic_entropy(p_NV: torch.Tensor, objective: Objective) -> torch.Tensor:
    return semantic_entropy(moments(p_NV, objective.codes, frozenset({"mass"})).mass_NG)


def _terms(logits_NV: torch.Tensor, targets_N: torch.Tensor, objective: Objective) -> LossTerms:
    log_NV = F.log_softmax(logits_NV, dim=-1)
    ce = F.nll_loss(log_NV, targets_N)
    log_target_N = log_NV.gather(-1, targets_N[:, None]).squeeze(-1)
    first, first_N = ce, -log_target_N
    if objective.first_order != "ce":
        first_N = objective.first_order_N(log_target_N, log_NV.mean(-1))
        first = first_N.mean()
    p_NV = log_NV.exp()
    with torch.set_grad_enabled(torch.is_grad_enabled() and objective.lambda_1 > 0):
        second_N, dispersion_N = _second_order(p_NV, objective, objective.reference_N(len(p_NV)))
    with torch.set_grad_enabled(torch.is_grad_enabled() and objective.lambda_2 > 0):
        semantic_N = _semantic_entropy(p_NV, objective)
    second, semantic = second_N.mean(), semantic_N.mean()
    total = weighted_total(first, second, semantic, *objective.weights)
    by_position = {
        "ce": -log_target_N.detach(),
        "first_order": first_N.detach(),
        "second_order": second_N.detach(),
        "semantic_entropy": semantic_N.detach(),
        "dispersion": dispersion_N.detach(),
    }
    return LossTerms(total, ce, first, second, semantic, by_position, objective.scales, objective.weights)
