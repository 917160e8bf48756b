"""Memorisation: how many samples copy a training image, and whether samples lie nearer to the training set than new
images do.

Networks that memorise have a low FID against the training set. Tokens show it at no cost: a sample is compared,
position by position, with the tokens of every training image of its class. Copies across classes are not looked for.

Shapes: N samples, M training images, H held-out images, L positions, B rows of a block.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from uvar_tune.data.order import spread_rows

NEAR = 0.75  # share of equal tokens from which an image counts as a near copy
_MAX_HELD_OUT = 2000
_BLOCK_BYTES = 1 << 27  # of one comparison


def copy_statistics(tokens_NL, labels_N, training_ML, training_labels_M, held_out_HL, held_out_labels_H) -> dict:
    """Copies among samples, by token.

    Args:
        tokens_NL: of the samples.
        labels_N: under which they were sampled.
        training_ML: tokens of the training images, integer array or memory map.
        training_labels_M: their labels.
        held_out_HL: tokens of images that the network has not seen; an even spread of at most 2,000 is used.
        held_out_labels_H: their labels.

    Returns:
        `copy_share`: share of samples that agree in at least 75 % of the tokens with a training image;
        `copy_share/exact`: in all of them; `copy_share/held_out`: the same share as `copy_share` of the held-out
        images, which is what a network without memory can be expected to reach; `training_proximity`: probability that
        a sample is nearer to the training set than a held-out image is, ties counted half. That is the statistic of the
        C_T test (Meehan et al. 2020) in the distance of tokens: 0.5 without memorisation, above it with. Samples and
        images of a class without training images do not count.
    """
    rows_H = spread_rows(held_out_labels_H, _MAX_HELD_OUT).numpy()
    training = _by_class(training_ML, training_labels_M)
    samples_N = _agreement(tokens_NL, labels_N, training)
    held_out_H = _agreement(np.asarray(held_out_HL[rows_H]), np.asarray(held_out_labels_H)[rows_H], training)
    statistics = {"copy_share": _share(samples_N, NEAR), "copy_share/exact": _share(samples_N, 1.0)}
    if len(held_out_H) and len(samples_N):
        statistics["copy_share/held_out"] = _share(held_out_H, NEAR)
        ordered_H = held_out_H.sort().values
        below_N = torch.searchsorted(ordered_H, samples_N, right=False)
        up_to_N = torch.searchsorted(ordered_H, samples_N, right=True)
        statistics["training_proximity"] = float((below_N + up_to_N).double().mean() / (2 * len(ordered_H)))
    return statistics


def _share(agreement_N: Tensor, least: float) -> float:
    return float((agreement_N >= least).double().mean()) if len(agreement_N) else 0.0


def _by_class(tokens_ML, labels_M) -> dict[int, Tensor]:
    """Class → its tokens, as int32 on the CPU."""
    labels_M = np.asarray(labels_M)
    return {
        int(label): torch.as_tensor(np.asarray(tokens_ML[np.flatnonzero(labels_M == label)]).astype(np.int32))
        for label in np.unique(labels_M)
    }


def _agreement(tokens_NL, labels_N, training: dict[int, Tensor]) -> Tensor:
    """For each row the largest share of tokens that agree with one training image of its class, in order of classes."""
    tokens_NL = torch.as_tensor(np.asarray(tokens_NL).astype(np.int32))
    labels_N = torch.as_tensor(np.asarray(labels_N))
    parts = []
    for label in labels_N.unique().tolist():
        if label not in training:
            continue
        own_NL, others_ML = tokens_NL[labels_N == label], training[label]
        block = max(1, _BLOCK_BYTES // others_ML.numel())
        parts += [(rows_BL[:, None] == others_ML).sum(-1).amax(1) for rows_BL in own_NL.split(block)]
    return torch.cat(parts).double() / tokens_NL.shape[1] if parts else torch.empty(0, dtype=torch.float64)
