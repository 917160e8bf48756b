"""Calibration and detection from probabilities alone: ECE, the best temperature, AUROC, mCE.

Shapes: N images or predictions, Y classes, T temperatures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from uvar_tune.errors import ConfigError

BINS = 15  # Guo et al. 2017


def expected_calibration_error(confidence_N: Tensor, correct_N: Tensor, *, bins: int = BINS) -> float:
    """ECE = Σ_b |b|/N · |accuracy(b) − confidence(b)| over bins of equal width in (0, 1] (Naeini et al. 2015).

    A confidence of 1, or rounded to just above 1, is in the last bin; 0 is in the first.
    """
    confidence_N, correct_N = confidence_N.double().flatten().clamp(0, 1), correct_N.double().flatten()
    bin_N = (torch.ceil(confidence_N * bins).long() - 1).clamp(0, bins - 1)
    gap = torch.zeros(bins, dtype=torch.float64).index_add_(0, bin_N, correct_N - confidence_N)
    return float(gap.abs().sum() / len(confidence_N))


def temperature_grid(low: float = 0.25, high: float = 4.0, count: int = 49) -> Tensor:
    """Temperatures evenly spaced on a log scale; they include 1 if ``low`` = 1/``high`` and ``count`` is odd."""
    return torch.logspace(math.log2(low), math.log2(high), count, base=2.0, dtype=torch.float64)


def best_of_grid(temperatures_T: Tensor, nll_T: Tensor) -> float:
    """The temperature of lowest NLL: the vertex of the parabola through the best grid point and its neighbours."""
    best = int(nll_T.argmin())
    if best in (0, len(nll_T) - 1):
        return float(temperatures_T[best])
    left, middle, right = nll_T[best - 1 : best + 2].tolist()
    curvature = left - 2 * middle + right
    shift = 0.5 * (left - right) / curvature if curvature > 0 else 0.0
    step = math.log(temperatures_T[best + 1] / temperatures_T[best])
    return float(temperatures_T[best]) * math.exp(shift * step)


def class_calibration(log_likelihood_NY: Tensor, labels_N: Tensor) -> dict[str, float]:
    """Accuracy, NLL and ECE of the class read-out p(y | R) ∝ p(R | y), also at the temperature of lowest NLL.

    The temperature is fitted on the same images: an upper bound on what this parameter alone can gain.
    """
    from scipy.optimize import minimize_scalar

    log_likelihood_NY, labels_N = log_likelihood_NY.double(), labels_N.long()

    def log_posterior_NY(log_temperature: float) -> Tensor:
        return (log_likelihood_NY / math.exp(log_temperature)).log_softmax(1)

    def nll(log_temperature: float) -> float:
        return float(-log_posterior_NY(log_temperature).gather(1, labels_N[:, None]).mean())

    def ece(log_temperature: float) -> float:
        confidence_N, guess_N = log_posterior_NY(log_temperature).exp().max(1)
        return expected_calibration_error(confidence_N, guess_N == labels_N)

    best = float(minimize_scalar(nll, bounds=(math.log(0.05), math.log(1000.0)), method="bounded").x)
    if nll(0.0) <= nll(best):
        best = 0.0
    return {
        "accuracy": float((log_likelihood_NY.argmax(1) == labels_N).double().mean()),
        "nll_class": nll(0.0),
        "ece_class": ece(0.0),
        "nll_class_tempered": nll(best),
        "ece_class_tempered": ece(best),
        "temperature_class": math.exp(best),
    }


def ood_score(log_likelihood_NY: Tensor) -> Tensor:
    """−log mean_y p(R | y) of each image: large if no class explains the tokens."""
    return math.log(log_likelihood_NY.shape[1]) - log_likelihood_NY.double().logsumexp(1)


def auroc(score_inside_N: Tensor, score_outside_M: Tensor) -> float:
    """P(score outside > score inside), ties counted half (Mann–Whitney)."""
    from scipy.stats import rankdata

    inside, outside = np.asarray(score_inside_N, dtype=np.float64), np.asarray(score_outside_M, dtype=np.float64)
    ranks = rankdata(np.concatenate([inside, outside]))[len(inside) :]
    return float((ranks.sum() - len(outside) * (len(outside) + 1) / 2) / (len(inside) * len(outside)))


def mean_corruption_error(errors: Mapping[str, Sequence[float]], divisor: Mapping[str, Sequence[float]]) -> float:
    """Mean corruption error in percent: the mean over kinds of Σ_severity error / Σ_severity divisor's error.

    Args:
        errors: kind → error (1 − accuracy) of each severity.
        divisor: the same of the network to compare with, which is part of the number's protocol (Hendrycks & Dietterich
            2019 use AlexNet).

    Raises:
        ConfigError: the kinds differ, or the divisor makes no error under one of them.
    """
    if set(errors) != set(divisor):
        raise ConfigError(
            f"corruption kinds {sorted(set(errors) ^ set(divisor))} are in one of the two only", where="mce"
        )
    flawless = [kind for kind in errors if sum(divisor[kind]) == 0]
    if flawless:
        raise ConfigError(f"the divisor makes no error under {', '.join(sorted(flawless))}", where="mce")
    return 100.0 * sum(sum(errors[kind]) / sum(divisor[kind]) for kind in errors) / len(errors)
