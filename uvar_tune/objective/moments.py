"""The few sums over the vocabulary of which every term of the loss is a function.

The sums over embeddings are taken relative to the most likely code of each position. Near one-hot predictions
Σp‖e‖² − ‖Σp e‖² is a difference of two numbers of the size of ‖e‖²; relative to the most likely code all summands
scale with the remaining mass, so the variance keeps its relative accuracy in float32.

Shapes: N positions of a batch, V codes, C code dimensions, G classes of codes, F = C + 2 features of a code.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch


@dataclass(frozen=True)
class Codes:
    """The codebook as the terms use it, centred (the metric of Eq. 7 is invariant to translation)."""

    centred_VC: torch.Tensor
    square_V: torch.Tensor
    classes_V: torch.Tensor | None
    class_count: int

    @cached_property
    def class_matrix_VG(self) -> torch.Tensor:
        """Membership of codes: p @ matrix is the mass of each class, deterministic on every device."""
        matrix_VG = self.centred_VC.new_zeros(len(self.classes_V), self.class_count)
        return matrix_VG.scatter_(1, self.classes_V[:, None], 1.0)

    @cached_property
    def features_VF(self) -> torch.Tensor:
        """Centred code, its squared norm, 1: p @ features are all sums of the embedding dispersion."""
        return torch.cat([self.centred_VC, self.square_V[:, None], torch.ones_like(self.square_V)[:, None]], dim=1)

    @cached_property
    def class_rows(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes sorted by class (V,), and the start of each class in that order (G,)."""
        counts_G = torch.bincount(self.classes_V, minlength=self.class_count)
        return self.classes_V.argsort(stable=True), counts_G.cumsum(0) - counts_G


class Moments(NamedTuple):
    """Sums at each position; those that were not requested are None."""

    vocabulary: int
    collision_N: torch.Tensor | None = None
    """Σ_v (p_v − 1/V)²."""
    first_NC: torch.Tensor | None = None
    """Σ_v p_v (e_v − e_j), j the most likely code."""
    second_N: torch.Tensor | None = None
    """Σ_v p_v (‖e_v‖² − ‖e_j‖²), e centred."""
    mode_NC: torch.Tensor | None = None
    """e_j, centred; a constant, because the variance does not depend on the choice of j."""
    mass_NG: torch.Tensor | None = None
    """P_c = Σ_{v in c} p_v."""


def prepare_codes(codebook_VC: torch.Tensor, classes_V: torch.Tensor | None = None, *, dtype=None) -> Codes:
    """Centre the codebook in ``dtype`` (default: its own); no gradient flows to the codebook."""
    codebook_VC = codebook_VC.detach().to(dtype or codebook_VC.dtype)
    centred_VC = codebook_VC - codebook_VC.mean(0)
    count = 0 if classes_V is None else int(classes_V.max()) + 1
    return Codes(centred_VC, centred_VC.square().sum(-1), classes_V, count)


def moments(probabilities_NV: torch.Tensor, codes: Codes, needs: frozenset[str]) -> Moments:
    """The sums named in ``needs`` (``collision``, ``spread``, ``mass``), differentiable in the probabilities."""
    p_NV, vocabulary = probabilities_NV, probabilities_NV.shape[-1]
    sums: dict[str, torch.Tensor] = {}
    if "collision" in needs:
        sums["collision_N"] = (p_NV - 1.0 / vocabulary).square().sum(-1)
    if "spread" in needs:
        mode_N = p_NV.detach().argmax(-1)
        rest_NV = p_NV.scatter(-1, mode_N[:, None], 0.0)
        # Transposed: rest @ features is less accurate on some CPUs, and no faster.
        sums_NF = (codes.features_VF.t() @ rest_NV.t()).t()
        sums["mode_NC"] = codes.centred_VC[mode_N]
        sums["first_NC"] = sums_NF[:, :-2] - sums_NF[:, -1:] * sums["mode_NC"]
        sums["second_N"] = sums_NF[:, -2] - sums_NF[:, -1] * codes.square_V[mode_N]
    if "mass" in needs:
        sums["mass_NG"] = p_NV @ codes.class_matrix_VG
    return Moments(vocabulary, **sums)
