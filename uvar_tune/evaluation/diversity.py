"""Diversity of samples: density and coverage, mean pairwise SSIM, codes in use.

Shapes: N generated and M reference samples, F features, P pairs, L positions, V codes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from uvar_tune import seeds
from uvar_tune.errors import ConfigError
from uvar_tune.evaluation.features import check_images
from uvar_tune.model.scales import boundaries


def density_coverage(
    generated_NF: Tensor, reference_MF: Tensor, *, neighbours: int = 5, block: int = 1024
) -> dict[str, float]:
    """Density and coverage (Naeem et al. 2020, Eq. 3 and 4), in float64 on the device of ``reference_MF``.

    Each reference sample has a ball whose radius is the distance to its ``neighbours``-th nearest other reference
    sample.

    Args:
        generated_NF: features of the generated samples.
        reference_MF: features of the reference samples.
        neighbours: k of the k-nearest-neighbour radius.
        block: reference rows processed at once.

    Returns:
        `density`: mean over generated samples of the number of balls that contain it, divided by ``neighbours`` (1 if
            both sets have the same distribution); `coverage`: share of balls that contain a generated sample.

    Raises:
        ConfigError: too few reference samples.
    """
    if not 0 < neighbours < len(reference_MF):
        raise ConfigError(
            f"{neighbours} neighbours need more than {len(reference_MF)} reference samples",
            where="density and coverage",
        )
    reference_MF = reference_MF.double()
    generated_NF = generated_NF.double().to(reference_MF.device)
    inside, covered = 0, 0
    for rows_BF in reference_MF.split(block):
        radius_B = _distances(rows_BF, reference_MF).kthvalue(neighbours + 1, dim=1).values  # the nearest is itself
        distances_BN = _distances(rows_BF, generated_NF)
        inside += int((distances_BN < radius_B[:, None]).sum())
        covered += int((distances_BN.amin(1) < radius_B).sum())
    return {"density": inside / (neighbours * len(generated_NF)), "coverage": covered / len(reference_MF)}


def _distances(a_BF: Tensor, b_MF: Tensor) -> Tensor:
    # Inner products would cancel, and rounding would decide which samples are inside a ball.
    return torch.cdist(a_BF, b_MF, compute_mode="donot_use_mm_for_euclid_dist")


def pairwise_ssim(
    images_N3HW: Tensor, *, labels_N: Tensor | None = None, pairs: int = 2000, seed: int = 0, chunk: int = 256
) -> dict[str, float]:
    """Mean SSIM over pairs of samples, `ssim_pairwise`, and its complement to 1, `diversity_ssim` (Table 7).

    Args:
        images_N3HW: uint8, at least 11 pixels a side (SSIM's Gaussian window).
        labels_N: draws the pairs within classes, equally many of each; None draws them over all samples.
        pairs: number of pairs, without repetition; all pairs of a class that has fewer.
        seed: of the drawing.
        chunk: pairs compared at once.

    Raises:
        ConfigError: images that are too small, or no class with two samples.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure as ssim

    check_images(images_N3HW, where="SSIM")
    if min(images_N3HW.shape[2:]) < 11:
        raise ConfigError(
            f"images {tuple(images_N3HW.shape[2:])} are smaller than SSIM's window of 11", where="ssim_pairwise"
        )
    first_P, second_P = _pairs(len(images_N3HW), labels_N, pairs, seed)
    total = 0.0
    for a_B, b_B in zip(first_P.split(chunk), second_P.split(chunk), strict=True):
        values = ssim(images_N3HW[a_B].float() / 255, images_N3HW[b_B].float() / 255, data_range=1.0, reduction="none")
        total += float(values.double().sum())
    mean = total / len(first_P)
    return {"ssim_pairwise": mean, "diversity_ssim": 1.0 - mean}


def _pairs(count: int, labels_N: Tensor | None, pairs: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of ``pairs`` pairs of different samples, or of all pairs if there are fewer."""
    labels_N = torch.zeros(count, dtype=torch.long) if labels_N is None else torch.as_tensor(labels_N)
    groups = [
        members for members in ((labels_N == y).nonzero().flatten() for y in labels_N.unique()) if len(members) > 1
    ]
    if not groups:
        raise ConfigError("no two samples to compare (within a class)", where="ssim_pairwise")
    share, generator = -(-pairs // len(groups)), seeds.generator(seed)
    parts = []
    for members in groups:
        rows, columns = torch.triu_indices(len(members), len(members), 1)
        drawn = torch.randperm(len(rows), generator=generator)[:share]
        parts.append(torch.stack([members[rows[drawn]], members[columns[drawn]]]))
    first_P, second_P = torch.cat(parts, 1)
    return first_P, second_P


def code_statistics(tokens_NL, *, scales: Sequence[int], vocab_size: int) -> dict[str, float]:
    """`code_usage`, the share of the V codes that occur, and `code_entropy`, the entropy of their histogram in nats.

    Over all positions and for each scale (`/scale_k`, k from 1). The entropy is at most ln V, and at most the
    logarithm of the number of tokens.
    """
    tokens_NL = torch.as_tensor(np.asarray(tokens_NL).astype(np.int64))
    parts = {"": tokens_NL} | {
        f"/scale_{k}": tokens_NL[:, start:end] for k, (start, end) in enumerate(boundaries(tuple(scales)), start=1)
    }
    statistics = {}
    for suffix, part in parts.items():
        count_V = torch.bincount(part.flatten(), minlength=vocab_size).double()
        share_V = count_V / count_V.sum()
        statistics[f"code_usage{suffix}"] = float((count_V > 0).double().mean())
        statistics[f"code_entropy{suffix}"] = float(-torch.xlogy(share_V, share_V).sum())
    return statistics
