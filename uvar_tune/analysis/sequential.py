"""Group-sequential tests on paired differences: valid at every look, whatever the pattern of looks.

The confirmation of a study looks at the pairs again and again: after each replicate, after a restart, after a stop. A
p-value that is valid once would then find too many effects. Here the maximum number of pairs N is fixed beforehand, and
the test statistic is the largest weighted z-score over all looks so far:

    C = max over MIN_PAIRS ≤ n ≤ N of z_n · (n/N)^(1/2 − Δ),    z_n = Φ⁻¹(1 − p_n),

with p_n the paired one-sided t test at n pairs and Δ = 1/4 (Wang & Tsiatis 1987: between O'Brien–Fleming, Δ = 0, and
Pocock, Δ = 1/2). The repeated p-value (Jennison & Turnbull 1989) is the probability of a C at least as large if there
is no effect. The t statistics of normal differences do not depend on their variance, so this distribution is simulated
once for each N, with a fixed seed. The repeated p-value holds at any look, and looking less often only makes it more
conservative.

Rounds: a study that is extended after its confirmation and then has other candidates is confirmed again on fresh seeds.
The rounds share one error rate: round r may spend `round_share(r)` of it, and the shares add up to one.

Legend: N pairs at most, n pairs so far, R simulated paths, … any leading axes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy  # its submodules load on first use

from uvar_tune.analysis.noise import ALPHA, MIN_PAIRS

FUTILITY = 0.1  # an arm stops if it would reach a verdict in its favour with less than this probability
_DELTA = 0.25
_PATHS = 200_000
_SEED = 20


@dataclass(frozen=True)
class SequentialDesign:
    """What is fixed before the first pair is looked at.

    Attributes:
        max_pairs: N, the pairs at the last look.
        round_number: 1 for the first confirmation of a study, 2 for one with other candidates, …
    """

    max_pairs: int
    round_number: int = 1

    @property
    def level(self) -> float:
        """The family-wise error rate that this round may spend."""
        return ALPHA * round_share(self.round_number)


def round_share(round_number: int) -> float:
    """Share of the error rate that confirmation round 1, 2, … may spend: 0.8, 0.1, 0.05, …; they add up to 1."""
    return 0.8 if round_number == 1 else 0.2 * 0.5 ** (round_number - 1)


@lru_cache(maxsize=8)
def _null_maxima(max_pairs: int) -> np.ndarray:
    """The statistic C of simulated studies without an effect, sorted: (R,)."""
    rng = np.random.default_rng(_SEED)
    maxima_R = np.full(_PATHS, -np.inf)
    total_R = np.zeros(_PATHS)
    squares_R = np.zeros(_PATHS)
    for n in range(1, max_pairs + 1):
        draw_R = rng.standard_normal(_PATHS)
        total_R += draw_R
        squares_R += draw_R**2
        if n < MIN_PAIRS:
            continue
        variance_R = (squares_R - total_R**2 / n) / (n - 1)
        statistic_R = total_R / np.sqrt(n * variance_R)
        maxima_R = np.maximum(maxima_R, weighted_z(scipy.stats.t.sf(statistic_R, n - 1), n, max_pairs))
    return np.sort(maxima_R)


def weighted_z(p: np.ndarray, pairs: int, max_pairs: int) -> np.ndarray:
    """The z-score of one-sided p-values at ``pairs`` of ``max_pairs``, on the scale on which looks are compared."""
    return scipy.stats.norm.isf(p) * (pairs / max_pairs) ** (0.5 - _DELTA)


def repeated_p(weighted: np.ndarray, max_pairs: int) -> np.ndarray:
    """Repeated p-values of the largest weighted z-scores so far.

    Below the resolution of the simulation a union bound over the looks takes its place, which is conservative.
    """
    null_R = _null_maxima(max_pairs)
    weighted = np.asarray(weighted, dtype=np.float64)
    simulated = (len(null_R) - np.searchsorted(null_R, weighted) + 1) / (len(null_R) + 1)
    looks = np.arange(MIN_PAIRS, max_pairs + 1)
    union = scipy.stats.norm.sf(weighted[..., None] * (looks / max_pairs) ** (_DELTA - 0.5)).sum(-1)
    far = simulated < 100 / len(null_R)
    return np.where(far, np.minimum(union, 1.0), simulated)


def nominal_level(level: float, pairs: int, max_pairs: int) -> float:
    """The one-sided level of a single t test at ``pairs`` that corresponds to ``level`` over all looks.

    It gives repeated confidence intervals: they hold at all looks together.
    """
    null_R = _null_maxima(max_pairs)
    boundary = float(np.quantile(null_R, 1 - level))
    return float(scipy.stats.norm.sf(boundary * (pairs / max_pairs) ** (_DELTA - 0.5)))


def conditional_power(mean: float, sd: float, pairs: int, max_pairs: int, level: float) -> float:
    """Probability of significance at the last look if the rest of the pairs follow the trend so far.

    Args:
        mean: mean gain of the pairs so far, positive = better.
        sd: their standard deviation.
        pairs: pairs so far.
        max_pairs: pairs at the last look.
        level: one-sided level over all looks.
    """
    if pairs >= max_pairs or sd <= 0:
        return float(mean > 0)
    critical = scipy.stats.t.isf(nominal_level(level, max_pairs, max_pairs), max_pairs - 1) * math.sqrt(max_pairs)
    expected = mean / sd * max_pairs
    return float(scipy.stats.norm.sf((critical - expected) / math.sqrt(max_pairs - pairs)))


def is_futile(mean: float, sd: float, pairs: int, max_pairs: int, level: float = ALPHA) -> bool:
    """Whether more pairs are unlikely to bring a verdict in the arm's favour (non-binding: it costs no error rate)."""
    return MIN_PAIRS <= pairs < max_pairs and conditional_power(mean, sd, pairs, max_pairs, level) < FUTILITY
