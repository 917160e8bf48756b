"""Gaussian kernels on the codebook, q(v|r) ∝ exp(−d0(v, r)²/2h²), whose width h reaches an asked perplexity.

Perplexity exp(H(q)) is the effective number of codes; it grows with h from the number of codes at distance 0 to V.
Shapes: U codes r in question, V codes.
"""

from __future__ import annotations

import math

import torch

from uvar_tune.errors import ConfigError

_HALVINGS = 45
"""Halvings of ln h in its bracket; 2^-45 of it is below what the perplexity resolves in float64."""
_ROWS_AT_ONCE = 512


def kernel(distance_UV: torch.Tensor, width: torch.Tensor | float) -> torch.Tensor:
    """q(v|r) for each row r."""
    return torch.softmax(-0.5 * (distance_UV / width).square(), dim=-1)


def perplexity(q_UV: torch.Tensor) -> torch.Tensor:
    return torch.special.entr(q_UV).sum(-1).exp()


def mean_perplexity(distance_UV: torch.Tensor, weight_U: torch.Tensor, width: float) -> float:
    parts = zip(distance_UV.split(_ROWS_AT_ONCE), weight_U.split(_ROWS_AT_ONCE), strict=True)
    return float(sum(weight @ perplexity(kernel(distance, width)) for distance, weight in parts))


def _bracket(distance_UV: torch.Tensor) -> tuple[float, float]:
    """ln of a width that reaches the nearest code with exp(−800), and of one to which all codes are equally near."""
    positive = distance_UV[distance_UV > 0]
    if positive.numel() == 0:
        raise ConfigError("all codes coincide: a kernel on them has no width", where="codebook")
    return math.log(float(positive.min()) / 40.0), math.log(float(positive.max()) * 1e4)


def rows_of_perplexity(distance_UV: torch.Tensor, wanted: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A width for each row, by bisection.

    Returns:
        the kernels (U, V) and their perplexity (U,), above ``wanted`` only where more codes than that coincide with r.
    """
    low, high = _bracket(distance_UV)
    low_U1 = distance_UV.new_full((len(distance_UV), 1), low)
    high_U1 = torch.full_like(low_U1, high)
    for _ in range(_HALVINGS):
        middle_U1 = 0.5 * (low_U1 + high_U1)
        above_U1 = (perplexity(kernel(distance_UV, middle_U1.exp())) > wanted)[:, None]
        low_U1, high_U1 = torch.where(above_U1, low_U1, middle_U1), torch.where(above_U1, middle_U1, high_U1)
    q_UV = kernel(distance_UV, low_U1.exp())
    return q_UV, perplexity(q_UV)


def width_of_perplexity(distance_UV: torch.Tensor, weight_U: torch.Tensor, wanted: float) -> float:
    """One width h for all rows, at which the perplexity averaged with ``weight_U`` is ``wanted``.

    Raises:
        ConfigError: so many codes coincide that the average exceeds ``wanted`` at every width.
    """
    from scipy.optimize import brentq

    low, high = _bracket(distance_UV)
    least = mean_perplexity(distance_UV, weight_U, math.exp(low))
    if least >= wanted:
        raise ConfigError(
            f"perplexity {wanted} cannot be reached: codes coincide, and the narrowest kernel already has {least:.4g}",
            where="loss.perplexity",
        )
    log_width = brentq(lambda x: mean_perplexity(distance_UV, weight_U, math.exp(x)) - wanted, low, high, xtol=1e-12)
    return math.exp(log_width)
