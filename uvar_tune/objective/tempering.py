"""A histogram tempered to an entropy: q ∝ p̂^β on the support of p̂, β = 1/τ (§2.3, reference (ii)).

Shapes: P positions of a scale, V codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_LARGEST_BETA = 2.0**40
_TIE = 1e-12
"""Entropies nearer than this, in nats, count as equal."""


@dataclass(frozen=True)
class Tempered:
    """``asked_entropy`` in nats before the cap; ``capped`` where no β reaches it and the nearest end was taken."""

    q_V: np.ndarray
    entropy: float
    asked_entropy: float
    capped: bool


def entropy(p_V: np.ndarray) -> float:
    """In nats."""
    positive = p_V[p_V > 0]
    return float(-(positive * np.log(positive)).sum())


def position_entropy(counts_PV: np.ndarray) -> float:
    """Mean over positions of the histogram's entropy, Miller–Madow corrected by (m − 1)/2n, m codes seen in n draws."""
    draws_P = counts_PV.sum(1)
    corrections = ((counts_PV > 0).sum(1) - 1) / (2.0 * draws_P)
    return float(np.mean([entropy(row / n) for row, n in zip(counts_PV, draws_P, strict=True)] + corrections))


def temper_to_position_entropy(counts_PV: np.ndarray) -> Tempered:
    """The scale's pooled histogram, tempered so that its entropy is ``position_entropy``.

    The corrected entropy can exceed ln of the number of codes ever seen at the scale, the most the support allows; and
    it can fall below the entropy of ties for the most frequent code. Then the nearest end is taken, ``capped`` says so.
    """
    from scipy.optimize import brentq

    asked = position_entropy(counts_PV)
    pooled_V = counts_PV.sum(0)
    support = pooled_V > 0
    logs = np.log(pooled_V[support] / pooled_V.sum())
    logs -= logs.max()

    def tempered(beta: float) -> np.ndarray:
        weights = np.exp(beta * logs)
        return weights / weights.sum()

    most, least = np.log(support.sum()), np.log((logs == 0).sum())
    if asked >= most - _TIE:
        beta, capped = 0.0, asked > most + _TIE
    elif asked <= least + _TIE:
        beta, capped = np.inf, asked < least - _TIE
    else:
        high = 1.0
        while entropy(tempered(high)) > asked and high < _LARGEST_BETA:
            high *= 2.0
        beta, capped = brentq(lambda b: entropy(tempered(b)) - asked, 0.0, high, xtol=1e-14, rtol=1e-14), False
    q_V = np.zeros(len(pooled_V))
    q_V[support] = tempered(beta) if np.isfinite(beta) else (logs == 0) / (logs == 0).sum()
    return Tempered(q_V, entropy(q_V), asked, bool(capped))
