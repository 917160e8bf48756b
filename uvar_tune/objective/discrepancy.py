"""Discrepancy d(a, b) between predicted and reference dispersion (Eq. 4).

A new one is a function of (a, b, floor, smoothing) and a line in ``DISCREPANCIES`` (and its name in ``LossConfig``, for
use in a study), for example

    DISCREPANCIES["absolute"] = lambda a, b, floor, smoothing: (a - b).abs()

``a`` is the predicted and ``b`` the reference dispersion in the same unit; ``floor`` is 1e-12 of the anchor in it.
"""

from __future__ import annotations

import torch

FLOOR = 1e-12
"""Smallest a under a root or a logarithm, in units of the anchor; the gradient below it is 0."""
KL_LEAST_REFERENCE = 1e-3
"""Smallest b that ``kl`` accepts, in units of the anchor."""


def _squared(a, b, floor, smoothing):
    """(a − b)²."""
    return (a - b).square()


def _kl(a, b, floor, smoothing):
    """KL between normals of equal mean, a smoothed by εb; at ε = 0 its gradient diverges as a → 0, hence the floor."""
    a = a if smoothing > 0 else a.clamp_min(floor)
    ratio = (a + smoothing * b) / (b * (1.0 + smoothing))
    return 0.5 * (ratio - 1.0 - torch.log(ratio))


def _wasserstein(a, b, floor, smoothing):
    """W2² between normals of equal mean, (√a − √b)² (Prop. 3.2)."""
    return (a.clamp_min(floor).sqrt() - b.sqrt()).square()


DISCREPANCIES = {"squared": _squared, "kl": _kl, "wasserstein": _wasserstein}
