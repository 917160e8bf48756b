"""Variance components and detectable gaps against simulated networks whose components are known."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from uvar_tune.analysis.noise import CONFIDENCE, MIN_PAIRS, detectable_gap, power, seeds_needed, variance_components
from uvar_tune.analysis.verdict import paired_test
from uvar_tune.errors import ConfigError

TRAINING, SHARED, REST = 1.5, 0.6, 0.9  # standard deviations
REPEATS = 500


def draw(rng, T: int, S: int, repeats: int, mean: float = 40.0) -> np.ndarray:
    """Scores (repeats, T, S) of the crossed model."""
    return (
        mean
        + TRAINING * rng.standard_normal((repeats, T, 1))
        + SHARED * rng.standard_normal((repeats, 1, S))
        + REST * rng.standard_normal((repeats, T, S))
    )


@pytest.fixture(scope="module")
def simulated():
    return [variance_components(scores_TS) for scores_TS in draw(np.random.default_rng(5), 6, 5, REPEATS)]


PLANTED = {
    "training": TRAINING**2,
    "shared": SHARED**2,
    "rest": REST**2,
    "sampling": SHARED**2 + REST**2,
    "replicate": TRAINING**2 + REST**2,
}


@pytest.mark.parametrize("name", PLANTED)
def test_components_are_unbiased(simulated, name):
    raw = np.array([getattr(noise, name).raw for noise in simulated])
    assert abs(raw.mean() - PLANTED[name]) < 4 * raw.std() / math.sqrt(REPEATS)


@pytest.mark.parametrize("name", PLANTED)
def test_intervals_cover_as_often_as_they_say(simulated, name):
    covered = np.mean([getattr(noise, name).low <= PLANTED[name] <= getattr(noise, name).high for noise in simulated])
    margin = 4 * math.sqrt(CONFIDENCE * (1 - CONFIDENCE) / REPEATS)
    assert CONFIDENCE - margin < covered < CONFIDENCE + margin  # the approximate ones are a little too wide, not more


def test_mean_squares_of_a_table_worked_by_hand():
    noise = variance_components([[1.0, 2.0], [5.0, 10.0]])  # row means 1.5, 7.5; column means 3, 6; rest ±1
    assert noise.rest.raw == pytest.approx(4.0)
    assert noise.training.raw == pytest.approx((36 - 4) / 2)
    assert noise.shared.raw == pytest.approx((9 - 4) / 2)
    assert noise.sampling.raw == pytest.approx((9 - 4) / 2 + 4)
    assert noise.replicate.raw == pytest.approx((36 - 4) / 2 + 4)
    assert noise.mean == 4.5


def test_negative_component_is_reported_as_zero():
    noise = variance_components([[0.0, 3.0, 0.0], [3.0, 0.0, 3.0], [0.0, 3.0, 0.0]])
    assert noise.shared.raw < 0 and noise.shared.value == noise.shared.sd == noise.shared.low == 0.0


def test_baseline_without_noise_shows_any_gap():
    noise = variance_components([[7.0, 7.0], [7.0, 7.0]])
    assert noise.training.value == noise.rest.value == noise.detectable_gap(4) == 0.0


def test_detectable_gap_is_found_four_times_in_five():
    """Two sides with the baseline's noise, one better by the gap, paired over replicates that share the sampling seeds."""
    rng, pairs, repeats = np.random.default_rng(11), 8, 4000
    gap = detectable_gap(math.sqrt(2 * (TRAINING**2 + REST**2)), pairs)
    shared_RN = SHARED * rng.standard_normal((repeats, 1))
    sides = [
        shared_RN + TRAINING * rng.standard_normal((repeats, pairs)) + REST * rng.standard_normal((repeats, pairs))
        for _ in range(2)
    ]
    found = np.mean(paired_test((sides[0] - sides[1] + gap)[:, None])["better"] <= 0.05)
    assert abs(found - 0.8) < 4 * math.sqrt(0.8 * 0.2 / repeats)


def test_detectable_gap_follows_from_the_noise():
    noise = variance_components(draw(np.random.default_rng(2), 8, 4, 1)[0])
    sd = math.sqrt(2 * (noise.training.raw + noise.rest.raw))
    assert noise.detectable_gap(8) == pytest.approx(detectable_gap(sd, 8))
    assert noise.detectable_gap(32) < noise.detectable_gap(8) / 1.9
    shown = json.loads(json.dumps(noise.as_dict(), allow_nan=False))
    assert [row["pairs"] for row in shown["detectable"]] == [4, 8, 16, 32]
    assert shown["detectable"][1]["relative"] == pytest.approx(noise.detectable_gap(8) / noise.mean)


@pytest.mark.parametrize("effect", [0.05, 0.3, 1.0, 1.9])
def test_seeds_needed_is_the_least_with_that_power(effect):
    pairs = seeds_needed(effect * 3.0, 3.0)
    assert power(effect, pairs) >= 0.8
    assert pairs == MIN_PAIRS or power(effect, pairs - 1) < 0.8
    assert detectable_gap(3.0, pairs) <= effect * 3.0 * (1 + 1e-9)


def test_seeds_needed_at_the_ends():
    assert seeds_needed(0.0, 1.0) is None and seeds_needed(-1.0, 1.0) is None
    assert seeds_needed(1.0, 0.0) == seeds_needed(100.0, 1.0) == MIN_PAIRS
    assert seeds_needed(1e-4, 1.0) == pytest.approx(6.1826e8, rel=1e-3)  # (1.645 + 0.842)² · 10⁸


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([[1.0, 2.0]], r"1 × 2 scores"),
        ([[1.0], [2.0]], r"2 × 1 scores"),
        ([], r"0 scores"),
        ([[1.0, 2.0], [3.0]], r"rows of \[2, 1\] scores"),
        ([[1.0, 2.0], [3.0, math.nan]], r"training seed 1, sampling seed 1: nan"),
    ],
)
def test_bad_tables_are_refused(scores, message):
    with pytest.raises(ConfigError, match=message):
        variance_components(scores)


def test_no_gap_below_the_pairs_of_a_verdict():
    with pytest.raises(ConfigError, match="at least 4"):
        detectable_gap(1.0, 3)
