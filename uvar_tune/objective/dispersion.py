"""Dispersion σ²_θ(i, k) of a predicted distribution (Eq. 3), in the two readings the paper allows.

A new one is a function of the moments and a line in ``DISPERSIONS`` (and its name in ``LossConfig``, for use in a
study), for example the mass outside the largest class:

    def _outside(m): return 1 - m.mass_NG.amax(-1)
    DISPERSIONS["outside"] = Dispersion(_outside, anchor_at="uniform", needs=frozenset({"mass"}))

Shapes: N positions, V codes, C code dimensions, G classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from uvar_tune.errors import choose
from uvar_tune.objective.moments import Codes, Moments, moments


@dataclass(frozen=True)
class Dispersion:
    """A functional of a distribution.

    Attributes:
        of_moments: its value at each position.
        anchor_at: ``uniform`` or ``one_hot``, the distribution at which it is 1 under ``normalize: relative``.
        needs: names of the moments that it reads.
    """

    of_moments: Callable[[Moments], torch.Tensor]
    anchor_at: str
    needs: frozenset[str]


def _probability(m: Moments) -> torch.Tensor:
    """Var_v[p(v)], the literal Eq. 3, as mean((p − 1/V)²), which cannot become negative."""
    return m.collision_N / m.vocabulary


def _embedding(m: Moments) -> torch.Tensor:
    """Trace of the covariance of the code under p (the metric of Eq. 7), clipped at 0 against rounding."""
    about_mode_N = m.second_N - 2.0 * (m.mode_NC * m.first_NC).sum(-1)
    return (about_mode_N - m.first_NC.square().sum(-1)).clamp_min(0.0)


DISPERSIONS = {
    "probability": Dispersion(_probability, anchor_at="one_hot", needs=frozenset({"collision"})),
    "embedding": Dispersion(_embedding, anchor_at="uniform", needs=frozenset({"spread"})),
}


def dispersion_of(name: str, probabilities_NV: torch.Tensor, codes: Codes) -> torch.Tensor:
    """σ²_N of these distributions, in the precision of the arguments."""
    entry = DISPERSIONS[choose(name, DISPERSIONS, "dispersion", "loss.dispersion")]
    return entry.of_moments(moments(probabilities_NV, codes, entry.needs))


def anchor_of(name: str, codes: Codes) -> float:
    """The dispersion at the anchor distribution: one-hot for ``probability``, uniform for ``embedding``."""
    entry = DISPERSIONS[choose(name, DISPERSIONS, "dispersion", "loss.dispersion")]
    vocabulary = len(codes.centred_VC)
    if entry.anchor_at == "uniform":
        p_1V = codes.centred_VC.new_full((1, vocabulary), 1.0 / vocabulary)
    else:
        p_1V = torch.eye(1, vocabulary, dtype=codes.centred_VC.dtype, device=codes.centred_VC.device)
    return float(entry.of_moments(moments(p_1V, codes, entry.needs)))
