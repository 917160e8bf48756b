"""How much of a score is noise, and which gap between two configurations is detectable in spite of it.

The baseline is scored over T training seeds × S sampling seeds, every checkpoint under the same sampling seeds:
y_ts = μ + training_t + sampling_s + rest_ts, all random and independent (two-way crossed design, one score a cell). The
mean squares estimate S·σ²_training + σ²_rest, T·σ²_sampling + σ²_rest and σ²_rest. Intervals: Graybill & Wang (1980)
for sums of mean squares, Ting et al. (1990) for differences, both as in Burdick & Graybill, *Confidence Intervals on
Variance Components* (1992), §3.2–3.3; they assume normal effects.

Power is that of the paired one-sided t test behind the verdicts (`uvar_tune.analysis.verdict`).

Legend: T training seeds, S sampling seeds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy  # lazy: its subpackages are imported on first use

from uvar_tune.errors import ConfigError

ALPHA = 0.05  # of each one-sided test
POWER = 0.80
MIN_PAIRS = 4  # fewer never give a verdict
CONFIDENCE = 1 - 2 * ALPHA  # of two-sided intervals: they exclude 0 if and only if a one-sided test at ALPHA rejects
_NORMAL_FROM = 100_000  # pairs from which t and normal quantiles agree to less than one pair


@dataclass(frozen=True)
class Variance:
    """An estimated variance with its interval at `CONFIDENCE`.

    Attributes:
        value: the estimate, at least 0.
        low: lower end of the interval.
        high: upper end of the interval.
        raw: the unbiased estimate, which may be negative if the component is small.
    """

    value: float
    low: float
    high: float
    raw: float

    @property
    def sd(self) -> float:
        """The standard deviation."""
        return math.sqrt(self.value)


@dataclass(frozen=True)
class Noise:
    """The baseline's noise, in the unit of the score (variances: squared).

    Attributes:
        mean: of all scores.
        training_seeds: T.
        sampling_seeds: S.
        training: between networks, from one training seed to another.
        sampling: within one network, from one set of sampling seeds to another: `shared` + `rest`.
        shared: the part of `sampling` that is common to all networks; it cancels if both sides share the seeds.
        rest: the interaction of training and sampling seeds.
        replicate: training + rest, the variance of one replicate if all arms share its sampling seeds.
    """

    mean: float
    training_seeds: int
    sampling_seeds: int
    training: Variance
    sampling: Variance
    shared: Variance
    rest: Variance
    replicate: Variance

    def detectable_gap(self, pairs: int) -> float:
        """The smallest true gap that ``pairs`` paired seeds detect with probability 80 %, in the unit of the score.

        Assumes that both sides have this noise and share nothing but the sampling effect. Any further correlation
        through the common seeds makes smaller gaps detectable.
        """
        return detectable_gap(math.sqrt(2) * self.replicate.sd, pairs)

    def as_dict(self, pairs: Sequence[int] = (4, 8, 16, 32)) -> dict[str, Any]:
        """Plain data for JSON, with the detectable gap (absolute and relative to the mean) for each of ``pairs``."""
        gaps = [
            {"pairs": n, "gap": self.detectable_gap(n), "relative": _relative(self.detectable_gap(n), self.mean)}
            for n in pairs
        ]
        return {**dataclasses.asdict(self), "confidence": CONFIDENCE, "detectable": gaps}


def variance_components(scores_TS: Sequence[Sequence[float]]) -> Noise:
    """Variance components of the baseline's scores.

    Args:
        scores_TS: one row a training seed, one column a sampling seed; all rows share the sampling seeds.

    Raises:
        ConfigError: fewer than 2 seeds of either kind, rows of unequal length, or a score that is not finite.
    """
    scores_TS = _checked(scores_TS)
    T, S = scores_TS.shape
    mean = scores_TS.mean()
    rows_T, columns_S = scores_TS.mean(1) - mean, scores_TS.mean(0) - mean
    rest_TS = scores_TS - mean - rows_T[:, None] - columns_S
    training = (S * float(rows_T @ rows_T) / (T - 1), T - 1)  # (mean square, degrees of freedom)
    sampling = (T * float(columns_S @ columns_S) / (S - 1), S - 1)
    rest = (float((rest_TS**2).sum()) / ((T - 1) * (S - 1)), (T - 1) * (S - 1))
    return Noise(
        mean=float(mean),
        training_seeds=T,
        sampling_seeds=S,
        training=_difference(training, rest, S),
        shared=_difference(sampling, rest, T),
        rest=_sum((1.0, rest)),
        sampling=_sum((1 / T, sampling), (1 - 1 / T, rest)),
        replicate=_sum((1 / S, training), (1 - 1 / S, rest)),
    )


def detectable_gap(sd_of_difference: float, pairs: int) -> float:
    """The mean difference that the paired one-sided test at 5 % detects with probability 80 %.

    Args:
        sd_of_difference: standard deviation of the paired differences.
        pairs: number of pairs.

    Raises:
        ConfigError: fewer pairs than a verdict needs.
    """
    if pairs < MIN_PAIRS:
        raise ConfigError(
            f"{pairs} paired seeds: a verdict needs at least {MIN_PAIRS}", where="pairs", nearest=str(MIN_PAIRS)
        )
    critical = scipy.stats.t.isf(ALPHA, pairs - 1)
    shift = scipy.optimize.brentq(
        lambda shift: scipy.stats.nct.sf(critical, pairs - 1, shift) - POWER, 0.0, 2 * critical + 4
    )
    return float(shift * sd_of_difference / math.sqrt(pairs))


def seeds_needed(gain: float, sd_of_difference: float) -> int | None:
    """The smallest number of pairs with which the one-sided test at 5 % detects ``gain`` with probability 80 %.

    Args:
        gain: the true mean difference, positive = better.
        sd_of_difference: standard deviation of the paired differences.

    Returns:
        None if ``gain`` is not positive.
    """
    if not gain > 0:
        return None
    if sd_of_difference == 0 or gain / sd_of_difference > 5:
        return MIN_PAIRS
    effect = gain / sd_of_difference
    normal = math.ceil(
        ((scipy.stats.norm.isf(ALPHA) + scipy.stats.norm.ppf(POWER)) / effect) ** 2
    )  # a lower bound for the t test
    pairs = max(MIN_PAIRS, normal)
    while pairs < _NORMAL_FROM and power(effect, pairs) < POWER:
        pairs += 1
    return pairs


def power(effect: float, pairs: int) -> float:
    """The power of the paired one-sided t test at 5 %; ``effect`` = mean difference / standard deviation over pairs."""
    return float(scipy.stats.nct.sf(scipy.stats.t.isf(ALPHA, pairs - 1), pairs - 1, effect * math.sqrt(pairs)))


def _checked(scores_TS) -> np.ndarray:
    if len({len(row) for row in scores_TS}) > 1:
        raise ConfigError(
            f"rows of {[len(row) for row in scores_TS]} scores: each training seed needs the same sampling seeds",
            where="noise",
        )
    scores_TS = np.asarray(scores_TS, dtype=np.float64)
    if scores_TS.ndim != 2 or min(scores_TS.shape) < 2:
        raise ConfigError(
            f"{' × '.join(map(str, scores_TS.shape))} scores: variance components need at least 2 training × "
            "2 sampling seeds",
            where="noise",
        )
    if not np.isfinite(scores_TS).all():
        t, s = np.argwhere(~np.isfinite(scores_TS))[0]
        raise ConfigError(f"training seed {t}, sampling seed {s}: {scores_TS[t, s]} is not a score", where="noise")
    return scores_TS


def _sum(*terms: tuple[float, tuple[float, int]]) -> Variance:
    """Σ c_i·MS_i, all c_i > 0 (Graybill & Wang 1980); exact for one term."""
    value = sum(c * square for c, (square, _) in terms)
    below = math.sqrt(sum((_g(df) * c * square) ** 2 for c, (square, df) in terms))
    above = math.sqrt(sum((_h(df) * c * square) ** 2 for c, (square, df) in terms))
    return Variance(value, max(value - below, 0.0), value + above, value)


def _difference(between: tuple[float, int], within: tuple[float, int], cells: int) -> Variance:
    """(MS_between − MS_within) / cells (Ting et al. 1990)."""
    (a, m), (b, n) = between, within
    low_f, high_f = scipy.stats.f.ppf(ALPHA, m, n), scipy.stats.f.isf(ALPHA, m, n)
    mixed_g = ((high_f - 1) ** 2 - (_g(m) * high_f) ** 2 - _h(n) ** 2) / high_f
    mixed_h = ((1 - low_f) ** 2 - (_h(m) * low_f) ** 2 - _g(n) ** 2) / low_f
    below = math.sqrt(max((_g(m) * a) ** 2 + (_h(n) * b) ** 2 + mixed_g * a * b, 0.0))
    above = math.sqrt(max((_h(m) * a) ** 2 + (_g(n) * b) ** 2 + mixed_h * a * b, 0.0))
    raw = (a - b) / cells
    return Variance(max(raw, 0.0), max(raw - below / cells, 0.0), max(raw + above / cells, 0.0), raw)


def _g(df: int) -> float:
    return 1 - df / scipy.stats.chi2.isf(ALPHA, df)


def _h(df: int) -> float:
    return df / scipy.stats.chi2.ppf(ALPHA, df) - 1


def _relative(gap: float, mean: float) -> float | None:
    return gap / abs(mean) if mean else None
