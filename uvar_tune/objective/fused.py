"""The composite loss (Eq. 6) directly from the hidden states, without holding all logits at once.

For a block of positions: logits, probabilities, and the few sums over the vocabulary of which all terms are functions
(``moments``). Dispersion, discrepancy and entropy use ordinary autograd on these small tensors. Their derivatives are
propagated to the block's logits in closed form, and from there into the three gradients while the block is in cache.
Forward and backward pass need the same three matrix products as plain cross-entropy, whatever the combination.

With m_t = E_p[f_t] a moment and g_t = ∂L/∂m_t:  ∂L/∂z_v = p_v Σ_t g_t (f_t(v) − m_t), and for the squares of
``collision``  ∂L/∂z_v = 2 g p_v (p_v − 1/V − collision).

A block is stored with the vocabulary first: codes are rows, so the mass of a class is a sum of whole rows.
Probabilities are relative to that of the most likely code, e_v = p_v / p_j with e_j stored as 0; ``top`` = p_j =
1/(1 + Σ e) scales the small tensors instead of the block, and −ln p_j = log1p(Σ e) is exact near one-hot predictions.

Shapes: N = B·L positions, n of one block, V codes, C code dimensions, D width, G classes, F = C + 2 features of a code.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from uvar_tune.errors import ConfigError
from uvar_tune.objective import validate
from uvar_tune.objective.moments import Moments
from uvar_tune.objective.prepared import TERMS, LossTerms, PreparedLoss, weighted_total
from uvar_tune.objective.semantic_entropy import semantic_entropy

BLOCK_ELEMENTS = {"cpu": 2**21, "cuda": 2**26}
"""Logits held at once, by device: on a CPU what fits its last-level cache, on a GPU enough to hide kernel launches."""


class _Block(NamedTuple):
    """e of n positions, (p − 1/V)/p_j if a moment needs it, the most likely code j, p_j, and the moments."""

    rest_Vn: torch.Tensor
    deviation_Vn: torch.Tensor | None
    mode_n: torch.Tensor
    top_n: torch.Tensor
    leaves: dict[str, torch.Tensor]


def _most_likely(logits_Vn: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``logits_Vn.max(0)`` in two levels: a maximum of whole rows is fast, an arg max along rows is not."""
    near_root = 2 ** (len(logits_Vn).bit_length() // 2)
    groups = logits_Vn.unflatten(0, (-1, math.gcd(len(logits_Vn), near_root)))
    _, group_1n = groups.amax(1).max(0, keepdim=True)
    greatest_1n, within_1n = groups.gather(0, group_1n.expand(groups.shape[1:])[None]).squeeze(0).max(0, keepdim=True)
    return greatest_1n, group_1n * groups.shape[1] + within_1n


def _measure(logits_Vn: torch.Tensor, targets_n: torch.Tensor, prepared: PreparedLoss) -> _Block:
    """The moments of a block; overwrites the logits with e."""
    codes, needs, deviation_Vn = prepared.codes, prepared.needs, None
    greatest_1n, mode_1n = _most_likely(logits_Vn)
    mode_n, relative_Vn = mode_1n.squeeze(0), logits_Vn.sub_(greatest_1n)
    leaves = {"log_target": relative_Vn.gather(0, targets_n[None]).squeeze(0)}
    if prepared.config.first_order == "label_smoothing":
        leaves["mean_log"] = relative_Vn.mean(0)
    if "collision" in needs:  # exact near uniform predictions
        deviation_Vn = torch.expm1(relative_Vn)
        deviation_Vn.sub_(deviation_Vn.mean(0))
    rest_Vn = relative_Vn.exp_().scatter_(0, mode_1n, 0.0)
    features_VF = codes.features_VF if "spread" in needs else codes.features_VF[:, -1:]
    sums_nF = (features_VF.T @ rest_Vn).T
    log_sum_n, top_n = sums_nF[:, -1].log1p(), (1.0 + sums_nF[:, -1]).reciprocal()
    for name in leaves:
        leaves[name] = leaves[name] - log_sum_n
    if "collision" in needs:
        leaves["collision"] = deviation_Vn.square().sum(0) * top_n.square()
    if "spread" in needs:
        sums_nF = sums_nF * top_n[:, None]
        leaves["first"] = sums_nF[:, :-2] - sums_nF[:, -1:] * codes.centred_VC[mode_n]
        leaves["second"] = sums_nF[:, -2] - sums_nF[:, -1] * codes.square_V[mode_n]
    by_class_V, first_G = codes.class_rows
    mass_Gn = F.embedding_bag(by_class_V, rest_Vn, first_G, mode="sum") * top_n
    leaves["mass"] = mass_Gn.scatter_add_(0, codes.classes_V[mode_1n], top_n[None]).T
    return _Block(rest_Vn, deviation_Vn, mode_n, top_n, leaves)


def _small_terms(block: _Block, reference_n: torch.Tensor, prepared: PreparedLoss) -> dict[str, torch.Tensor]:
    """The terms of each position, by the same functions as in ``composite_loss``."""
    leaves = block.leaves
    moments = Moments(
        vocabulary=prepared.vocabulary,
        collision_N=leaves.get("collision"),
        first_NC=leaves.get("first"),
        second_N=leaves.get("second"),
        mode_NC=prepared.codes.centred_VC[block.mode_n],
        mass_NG=leaves["mass"],
    )
    dispersion_n = prepared.dispersion_N(moments)
    return {
        "first_order": prepared.first_order_N(leaves["log_target"], leaves.get("mean_log")),
        "ce": -leaves["log_target"],
        "second_order": prepared.second_order_N(dispersion_n, reference_n),
        "semantic_entropy": semantic_entropy(leaves["mass"]),
        "dispersion": dispersion_n,
    }


def _total(rows: dict[str, torch.Tensor], prepared: PreparedLoss) -> torch.Tensor:
    return weighted_total(rows["first_order"], rows["second_order"], rows["semantic_entropy"], prepared.weights)


def _moment_gradients(block: _Block, reference_n: torch.Tensor, prepared: PreparedLoss, count: int):
    """The terms of each position, detached, and the derivatives of Σ_n total/N with respect to the moments."""
    with torch.enable_grad():
        leaves = {name: value.detach().requires_grad_() for name, value in block.leaves.items()}
        rows = _small_terms(block._replace(leaves=leaves), reference_n, prepared)
        partials = torch.autograd.grad(_total(rows, prepared).sum() / count, list(leaves.values()), allow_unused=True)
    gradients = {name: gradient for name, gradient in zip(leaves, partials, strict=True) if gradient is not None}
    return {name: values_n.detach() for name, values_n in rows.items()}, gradients


def _logit_gradient(block: _Block, gradients: dict, targets_n: torch.Tensor, prepared: PreparedLoss):
    """∂L/∂z (V, n) in closed form, written over ``rest_Vn``.

    A gradient at logits sums to 0, so that of the most likely code is minus the sum of the others. Near one-hot
    predictions these keep their relative accuracy, while its own formula would be a difference of large numbers.
    """
    codes, (rest_Vn, deviation_Vn, mode_n, top_n, leaves) = prepared.codes, block
    constant_n = -gradients["log_target"]
    if "mean_log" in gradients:
        constant_n = constant_n - gradients["mean_log"]
    for name in ("mass", "first", "second"):
        if name in gradients:
            constant_n = constant_n - (gradients[name] * leaves[name]).reshape(len(mode_n), -1).sum(-1)
    if "collision" in gradients:
        slope_n = 2.0 * gradients["collision"]
        constant_n = constant_n - slope_n * leaves["collision"]
    factor_Vn = (constant_n * top_n)[None]
    if "mass" in gradients:
        by_class_Gn = gradients["mass"].T * top_n
        if "first" not in gradients:
            by_class_Gn = by_class_Gn + factor_Vn
        factor_Vn = by_class_Gn.index_select(0, codes.classes_V)
    if "first" in gradients:
        at_mode_n = (gradients["first"] * codes.centred_VC[mode_n]).sum(-1)
        at_mode_n = at_mode_n + gradients["second"] * codes.square_V[mode_n]
        weights_Fn = torch.cat([gradients["first"].T, gradients["second"][None], (constant_n - at_mode_n)[None]])
        weights_Fn *= top_n
        if "mass" in gradients:
            factor_Vn.addmm_(codes.features_VF, weights_Fn)
        else:
            factor_Vn = codes.features_VF @ weights_Fn
    if "collision" in gradients:
        factor_Vn = torch.addcmul(factor_Vn, deviation_Vn, slope_n * top_n.square(), out=deviation_Vn)
    logits_Vn = rest_Vn.mul_(factor_Vn).scatter_add_(0, targets_n[None], gradients["log_target"][None])
    if "mean_log" in gradients:
        logits_Vn.add_(gradients["mean_log"] / prepared.vocabulary)
    logits_Vn.scatter_(0, mode_n[None], 0.0)
    return logits_Vn.scatter_(0, mode_n[None], -logits_Vn.sum(0, keepdim=True))


class _Gradients:
    """The required gradients, accumulated block by block; products in the precision of the forward product."""

    def __init__(self, hidden_ND, weight_VD, required: tuple[bool, bool, bool], precise: torch.dtype):
        hidden, weight, bias = required
        self.hidden_ND = torch.empty_like(hidden_ND) if hidden else None
        self.weight_VD = torch.zeros_like(weight_VD, dtype=precise) if weight else None
        self.bias_V = weight_VD.new_zeros(len(weight_VD), dtype=precise) if bias else None

    def add(self, part: slice, logits_Vn: torch.Tensor, hidden_nD: torch.Tensor, weight_VD: torch.Tensor) -> None:
        low_Vn = logits_Vn.to(weight_VD.dtype)
        if self.bias_V is not None:
            self.bias_V += logits_Vn.sum(1)
        if self.hidden_ND is not None and self.hidden_ND.dtype == low_Vn.dtype:
            torch.mm(low_Vn.T, weight_VD, out=self.hidden_ND[part])
        elif self.hidden_ND is not None:
            self.hidden_ND[part] = low_Vn.T @ weight_VD
        if self.weight_VD is not None and self.weight_VD.dtype == low_Vn.dtype:
            self.weight_VD.addmm_(low_Vn, hidden_nD)
        elif self.weight_VD is not None:
            self.weight_VD += low_Vn @ hidden_nD


def _one_block(hidden_nD, weight_VD, bias_V1, targets_n, reference_n, prepared: PreparedLoss, count: int | None):
    """The terms of n positions and, if ``count`` (N of the mean) is given, ∂L/∂z (V, n)."""
    logits_Vn = torch.addmm(bias_V1, weight_VD, hidden_nD.T).to(prepared.dtype)
    measured = _measure(logits_Vn, targets_n, prepared)
    if count is None:
        return _small_terms(measured, reference_n, prepared), None
    terms, by_moment = _moment_gradients(measured, reference_n, prepared, count)
    return terms, _logit_gradient(measured, by_moment, targets_n, prepared)


class _Fused(torch.autograd.Function):
    """(total, rows): gradients of the total are computed in the forward pass and scaled in the backward pass."""

    @staticmethod
    def forward(
        ctx, hidden_ND, weight_VD, bias_V, targets_N, prepared: PreparedLoss, low: torch.dtype, required: tuple
    ):
        precise, count = prepared.dtype, len(hidden_ND)
        elements = BLOCK_ELEMENTS.get(hidden_ND.device.type, BLOCK_ELEMENTS["cuda"])
        block, reference_N = max(1, elements // prepared.vocabulary), prepared.reference_N(count)
        low_weight_VD, low_bias_V1 = weight_VD.to(low), bias_V.to(low)[:, None]
        gradients = _Gradients(hidden_ND, weight_VD, required, precise)
        rows: dict[str, list[torch.Tensor]] = {name: [] for name in TERMS}
        for start in range(0, count, block):
            part = slice(start, start + block)
            inputs = (hidden_ND[part].to(low), low_weight_VD, low_bias_V1, targets_N[part], reference_N[part])
            terms, logits_Vn = _one_block(*inputs, prepared, count if any(required) else None)
            if logits_Vn is not None:
                gradients.add(part, logits_Vn, inputs[0], low_weight_VD)
            del logits_Vn  # otherwise two blocks would be held at once
            for name in TERMS:
                rows[name].append(terms[name])
        ctx.save_for_backward(gradients.hidden_ND, gradients.weight_VD, gradients.bias_V)
        joined = {name: torch.cat(parts) for name, parts in rows.items()}
        ctx.mark_non_differentiable(*joined.values())
        return _total({name: values_N.mean() for name, values_N in joined.items()}, prepared), *joined.values()

    @staticmethod
    def backward(ctx, total_grad, *_):
        # In place: autograd's version check then refuses a second backward pass through the same graph.
        scaled = (None if gradient is None else gradient.mul_(total_grad) for gradient in ctx.saved_tensors)
        return *scaled, None, None, None, None


def fused_terms(
    prepared: PreparedLoss,
    hidden_BLD: torch.Tensor,
    weight_VD: torch.Tensor,
    bias_V: torch.Tensor,
    targets_BL: torch.Tensor,
) -> LossTerms:
    """``fused_composite_loss`` with prepared constants."""
    shape, device = hidden_BLD.shape, hidden_BLD.device.type
    if len(shape) != 3 or weight_VD.ndim != 2 or shape[-1] != weight_VD.shape[1] or bias_V.shape != weight_VD.shape[:1]:
        shapes = ", ".join(str(tuple(x.shape)) for x in (hidden_BLD, weight_VD, bias_V))
        raise ConfigError(f"shapes {shapes}, expected (B, L, D), (V, D), (V,)", where="hidden, weight, bias")
    validate.check_shapes(targets_BL, (*shape[:2], len(weight_VD)), prepared.vocabulary, prepared.scales)
    low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VD.dtype
    required = tuple(torch.is_grad_enabled() and x.requires_grad for x in (hidden_BLD, weight_VD, bias_V))
    with torch.autocast(device, enabled=False):
        targets_N = targets_BL.flatten().long()
        codes_N = targets_N.clamp(0, prepared.vocabulary - 1)
        total, *joined = _Fused.apply(hidden_BLD.flatten(0, 1), weight_VD, bias_V, codes_N, prepared, low, required)
        rows = dict(zip(TERMS, joined, strict=True))
        means = {name: rows[name].mean() for name in ("ce", "first_order", "second_order", "semantic_entropy")}
        out_of_range = (codes_N != targets_N).any()
        validate.check_loss(total, means["ce"], out_of_range, targets_BL, prepared.vocabulary)
    return LossTerms(total, **means, by_position=rows, scales=prepared.scales, weights=prepared.weights)
