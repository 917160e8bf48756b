"""Scorecard of uncertainty preservation: how much uncertainty a VAR's predictions keep, scale by scale.

Predictive entropy, dispersion next to the reference that training aims at (Eq. 3), their discrepancy (Eq. 4) and
semantic entropy (Eq. 5), on held-out tokens under teacher forcing. It is read next to FID.

Shapes: N images, B chunk, L positions, K scales, V codes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from uvar_tune.config.schema import LossConfig
from uvar_tune.evaluation.likelihood import evaluating, teacher_forced
from uvar_tune.model.scales import boundaries
from uvar_tune.objective import composite_loss
from uvar_tune.objective.dispersion import anchor_of
from uvar_tune.objective.moments import prepare_codes

_TERMS = ("entropy", "dispersion", "second_order", "semantic_entropy")


def scorecard(
    var,
    vqvae,
    tokens_NL,
    labels_N,
    *,
    loss: LossConfig,
    classes_V: Tensor,
    reference_variance_K: Sequence[float],
    chunk: int = 64,
) -> dict[str, float]:
    """Means over the positions of each scale (`/scale_k`, k from 1) and over all positions (no suffix).

    Args:
        var: the transformer.
        vqvae: the tokenizer.
        tokens_NL: held-out tokens.
        labels_N: their labels.
        loss: names dispersion, discrepancy, normalisation and smoothing; its λ are not used.
        classes_V: semantic class of each code.
        reference_variance_K: σ²⋆ of each scale, before normalisation, as `composite_loss` takes it.
        chunk: images processed at once.

    Returns:
        `entropy` and `semantic_entropy` in nats; `dispersion` and `dispersion_reference`, with `normalize: relative` in
        units of the anchor; `dispersion_ratio` = √(dispersion / reference), 1 at the reference and absent at scales
        whose reference is 0; `second_order`, the unweighted discrepancy of the two.
    """
    scales, device = tuple(vqvae.scales), vqvae.codebook_VC.device
    constants = {
        "scales": scales,
        "codebook": vqvae.codebook_VC.detach(),
        "classes": torch.as_tensor(classes_V).to(device),
        "reference_variance": torch.as_tensor(reference_variance_K).to(device),
    }
    loss = loss.baseline()
    sums_L = {name: 0.0 for name in _TERMS}
    with evaluating(var, vqvae):
        for logits_BLV, tokens_BL in teacher_forced(var, vqvae, tokens_NL, labels_N, chunk=chunk, device=device):
            log_p_BLV = logits_BLV.log_softmax(-1)
            entropy_BL = -(log_p_BLV.exp() * log_p_BLV).sum(-1)
            terms_L = composite_loss(logits_BLV, tokens_BL, loss, **constants).positions | {
                "entropy": entropy_BL.mean(0)
            }
            for name in _TERMS:
                sums_L[name] = sums_L[name] + terms_L[name].double().cpu() * len(tokens_BL)
    means_L = {name: total_L / len(tokens_NL) for name, total_L in sums_L.items()}
    relative = loss.normalize == "relative"
    anchor = anchor_of(loss.dispersion, prepare_codes(constants["codebook"].double())) if relative else 1.0
    return _by_scale(means_L, [float(value) / anchor for value in reference_variance_K], scales)


def _by_scale(means_L: dict[str, Tensor], reference_K: list[float], scales: tuple[int, ...]) -> dict[str, float]:
    parts = boundaries(scales)
    means_L["dispersion_reference"] = torch.cat(
        [
            torch.full((end - start,), value, dtype=torch.float64)
            for value, (start, end) in zip(reference_K, parts, strict=True)
        ]
    )
    scores = {}
    for suffix, (start, end) in [("", (0, parts[-1][1])), *((f"/scale_{k}", p) for k, p in enumerate(parts, start=1))]:
        means = {name: float(values_L[start:end].mean()) for name, values_L in means_L.items()}
        if means["dispersion_reference"] > 0:
            means["dispersion_ratio"] = (means["dispersion"] / means["dispersion_reference"]) ** 0.5
        scores |= {f"{name}{suffix}": value for name, value in means.items()}
    return scores
