"""The first-order term: cross-entropy (Eq. 2), and the alternatives of Figure 1 for comparison.

A new one is a function of (log_target_N, mean_log_N, epsilon, alpha) and a line in ``FIRST_ORDER`` (and its name in
``LossConfig``, for use in a study), for example

    FIRST_ORDER["focal"] = lambda log_target, mean_log, epsilon, alpha: -(1 - log_target.exp()) ** 2 * log_target

``log_target_N`` is ln p(y) and ``mean_log_N`` is (1/V) Σ_v ln p(v), at each position.
"""

from __future__ import annotations

import math

import torch


def _ce(log_target_N, mean_log_N, epsilon, alpha):
    """−ln p(y) (Eq. 2)."""
    return -log_target_N


def _label_smoothing(log_target_N, mean_log_N, epsilon, alpha):
    """Cross-entropy against (1 − ε)·one-hot + ε/V (Szegedy et al. 2016)."""
    return -(1.0 - epsilon) * log_target_N - epsilon * mean_log_N


def _label_relaxation(log_target_N, mean_log_N, epsilon, alpha):
    """0 inside the credal set p(y) ≥ 1 − α, else KL(q̃ ‖ p) (Lienen & Hüllermeier 2021).

    With q̃(y) = 1 − α and q̃(v) = α p(v)/(1 − p(y)) the sum over the other codes is α ln(α/(1 − p(y))).
    """
    outside_N = log_target_N.detach() < math.log1p(-alpha)
    # Inside the set this branch is not used; the constant keeps its derivative finite there.
    log_y_N = torch.where(outside_N, log_target_N, torch.full_like(log_target_N, math.log1p(-alpha) - 1.0))
    loss_N = (1.0 - alpha) * (math.log1p(-alpha) - log_y_N)
    if alpha > 0:
        loss_N = loss_N + alpha * (math.log(alpha) - torch.log1p(-log_y_N.exp()))
    return torch.where(outside_N, loss_N, torch.zeros_like(loss_N))


FIRST_ORDER = {"ce": _ce, "label_smoothing": _label_smoothing, "label_relaxation": _label_relaxation}
