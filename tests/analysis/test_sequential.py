"""The sequential tests on simulated studies whose truth is planted."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from uvar_tune.analysis.noise import ALPHA, MIN_PAIRS
from uvar_tune.analysis.sequential import (
    conditional_power,
    nominal_level,
    repeated_p,
    round_share,
    weighted_z,
)

REPEATS, PAIRS = 2000, 12


def paths(effect_se: float, seed: int, repeats: int = REPEATS) -> np.ndarray:
    """Paired gains (repeats, PAIRS) with a true effect in standard errors of the mean of all pairs."""
    return np.random.default_rng(seed).standard_normal((repeats, PAIRS)) + effect_se / math.sqrt(PAIRS)


def largest_z(gains_RN: np.ndarray, looks: list[int]) -> np.ndarray:
    """The statistic over these looks, each t test taken from SciPy."""
    p = [stats.ttest_1samp(gains_RN[:, :n], 0.0, axis=1, alternative="greater").pvalue for n in looks]
    return np.max([weighted_z(values, n, PAIRS) for values, n in zip(p, looks, strict=True)], axis=0)


@pytest.mark.parametrize("looks", [range(MIN_PAIRS, PAIRS + 1), [PAIRS], [5, 7, 12], [4, 11]], ids=str)
def test_any_pattern_of_looks_keeps_the_level(looks):
    p_R = repeated_p(largest_z(paths(0.0, seed=3), list(looks)), PAIRS)
    for level in (0.05, 0.01):
        assert (p_R <= level).mean() <= level + 3 * math.sqrt(level * (1 - level) / REPEATS)


def test_level_is_used_when_every_look_is_taken():
    p_R = repeated_p(largest_z(paths(0.0, seed=4, repeats=20_000), list(range(MIN_PAIRS, PAIRS + 1))), PAIRS)
    assert (p_R <= ALPHA).mean() == pytest.approx(ALPHA, abs=0.006)


def test_repeated_p_is_never_below_one_test():
    single = np.array([0.2, 0.03, 1e-4, 1e-9])
    for n in (MIN_PAIRS, 8, PAIRS):
        assert (repeated_p(weighted_z(single, n, PAIRS), PAIRS) >= single).all()


def test_rounds_share_one_error_rate():
    assert sum(round_share(r) for r in range(1, 40)) == pytest.approx(1.0)
    assert [round_share(r) for r in (1, 2, 3)] == [0.8, 0.1, 0.05]


def test_intervals_hold_at_all_looks_together():
    gains_RN = paths(1.5, seed=5, repeats=4000)
    truth, inside = 1.5 / math.sqrt(PAIRS), np.ones(len(gains_RN), bool)
    for n in range(MIN_PAIRS, PAIRS + 1):
        half = stats.t.isf(nominal_level(0.05, n, PAIRS), n - 1) * gains_RN[:, :n].std(1, ddof=1) / math.sqrt(n)
        inside &= gains_RN[:, :n].mean(1) - half <= truth
    assert inside.mean() >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / 4000)


def test_conditional_power_against_simulated_rest():
    rng = np.random.default_rng(6)
    mean, sd, n = 0.6, 1.0, 6
    rest = rng.normal(mean, sd, (40_000, PAIRS - n)).sum(1)
    critical = stats.t.isf(nominal_level(ALPHA, PAIRS, PAIRS), PAIRS - 1) * math.sqrt(PAIRS)
    simulated = (mean * n + rest > critical * sd).mean()
    assert conditional_power(mean, sd, n, PAIRS, ALPHA) == pytest.approx(simulated, abs=0.01)
