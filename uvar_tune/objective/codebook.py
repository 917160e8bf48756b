"""The ground metric d0 on the codebook (Eq. 7). A new one is a function codebook_VC -> (V, V) and a line below."""

from __future__ import annotations

import torch

from uvar_tune.errors import ConfigError, choose


def _euclidean(codebook_VC: torch.Tensor) -> torch.Tensor:
    # The matrix-product shortcut loses the small distances between neighbouring codes, the ones that matter here.
    return torch.cdist(codebook_VC, codebook_VC, compute_mode="donot_use_mm_for_euclid_dist")


def _cosine(codebook_VC: torch.Tensor) -> torch.Tensor:
    norm_V1 = codebook_VC.norm(dim=1, keepdim=True)
    if bool((norm_V1 == 0).any()):
        raise ConfigError("a code of length 0 has no direction: cosine distance is undefined", where="loss.distance")
    direction_VC = codebook_VC / norm_V1
    return (1.0 - direction_VC @ direction_VC.T).clamp_min(0.0).fill_diagonal_(0.0)


DISTANCES = {"euclidean": _euclidean, "cosine": _cosine}


def distances(codebook_VC: torch.Tensor, name: str = "euclidean") -> torch.Tensor:
    """(V, V) distances d0 between codes, in float64, with zeros on the diagonal.

    Raises:
        ConfigError: unknown name, or ``cosine`` with a code of length 0.
    """
    choose(name, DISTANCES, "distance", "loss.distance")
    return DISTANCES[name](codebook_VC.detach().double())
