"""Geometry of the codebook: the ground metric d0 (Eq. 7), and Gaussian kernels q(v|r) ∝ exp(−d0(v, r)²/2h²) on it.

The width h of a kernel is found by its perplexity exp(H(q)), the effective number of codes, which grows with h from the
number of codes at distance 0 to V. A new metric is a function codebook_VC → (V, V) and a line in ``DISTANCES``.

Shapes: U codes r around which there is a kernel, V codes, C code dimensions.
"""

from __future__ import annotations

import math

import torch

from uvar_tune.errors import ConfigError, choose

_HALVINGS = 45
"""Bisection steps of ln h; 2^-45 of the bracket is below the resolution of the perplexity in float64."""
_ROWS_AT_ONCE = 512


def _euclidean(codebook_VC: torch.Tensor) -> torch.Tensor:
    # Not by matrix product, which loses the small distances between neighbouring codes.
    return torch.cdist(codebook_VC, codebook_VC, compute_mode="donot_use_mm_for_euclid_dist")


def _cosine(codebook_VC: torch.Tensor) -> torch.Tensor:
    norm_V1 = codebook_VC.norm(dim=1, keepdim=True)
    if bool((norm_V1 == 0).any()):
        raise ConfigError("a code of length 0 has no direction: cosine distance is undefined", where="loss.distance")
    direction_VC = codebook_VC / norm_V1
    return (1.0 - direction_VC @ direction_VC.T).clamp_min(0.0).fill_diagonal_(0.0)


DISTANCES = {"euclidean": _euclidean, "cosine": _cosine}


def distances(codebook_VC: torch.Tensor, name: str = "euclidean") -> torch.Tensor:
    """The distances d0 between codes (V, V), in float64, with zeros on the diagonal (Eq. 7).

    Raises:
        ConfigError: unknown name, or ``cosine`` with a code of length 0.
    """
    choose(name, DISTANCES, "distance", "loss.distance")
    return DISTANCES[name](codebook_VC.detach().double())


def kernel(distance_UV: torch.Tensor, width: torch.Tensor | float) -> torch.Tensor:
    """q(v|r) for each row r (§2.3)."""
    return torch.softmax(-0.5 * (distance_UV / width).square(), dim=-1)


def perplexity(q_UV: torch.Tensor) -> torch.Tensor:
    """exp(H(q)) of each row."""
    return torch.special.entr(q_UV).sum(-1).exp()


def mean_perplexity(distance_UV: torch.Tensor, weight_U: torch.Tensor, width: float) -> float:
    """The perplexity of the kernels of one width, averaged with ``weight_U``."""
    parts = zip(distance_UV.split(_ROWS_AT_ONCE), weight_U.split(_ROWS_AT_ONCE), strict=True)
    return float(sum(weight @ perplexity(kernel(distance, width)) for distance, weight in parts))


def _bracket(distance_UV: torch.Tensor) -> tuple[float, float]:
    """Logarithms of a width with weight exp(−800) at the nearest code, and of one with equal weights."""
    positive = distance_UV[distance_UV > 0]
    if positive.numel() == 0:
        raise ConfigError("all codes coincide: a kernel on them has no width", where="codebook")
    return math.log(float(positive.min()) / 40.0), math.log(float(positive.max()) * 1e4)


def rows_of_perplexity(distance_UV: torch.Tensor, target: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Kernels whose width is bisected row by row.

    Returns:
        the kernels (U, V) and their perplexity (U,), which exceeds ``target`` only if more codes than that coincide
        with r.
    """
    low, high = _bracket(distance_UV)
    low_U1 = distance_UV.new_full((len(distance_UV), 1), low)
    high_U1 = torch.full_like(low_U1, high)
    for _ in range(_HALVINGS):
        middle_U1 = 0.5 * (low_U1 + high_U1)
        above_U1 = (perplexity(kernel(distance_UV, middle_U1.exp())) > target)[:, None]
        low_U1, high_U1 = torch.where(above_U1, low_U1, middle_U1), torch.where(above_U1, middle_U1, high_U1)
    q_UV = kernel(distance_UV, low_U1.exp())
    return q_UV, perplexity(q_UV)


def width_of_perplexity(distance_UV: torch.Tensor, weight_U: torch.Tensor, target: float) -> float:
    """The common width h of all rows at which the perplexity averaged with ``weight_U`` is ``target``.

    Raises:
        ConfigError: so many codes coincide that the average exceeds ``target`` at every width.
    """
    from scipy.optimize import brentq

    low, high = _bracket(distance_UV)
    narrowest = mean_perplexity(distance_UV, weight_U, math.exp(low))
    if narrowest >= target:
        raise ConfigError(
            f"perplexity {target} cannot be reached: codes coincide, the narrowest kernel already has {narrowest:.4g}",
            where="loss.perplexity",
        )
    log_width = brentq(lambda x: mean_perplexity(distance_UV, weight_U, math.exp(x)) - target, low, high, xtol=1e-12)
    return math.exp(log_width)
