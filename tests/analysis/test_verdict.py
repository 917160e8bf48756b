"""Verdicts on synthetic studies whose truth is planted, and against independent oracles."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from uvar_tune.analysis.noise import power
from uvar_tune.analysis.verdict import (
    BETTER,
    UNDECIDED,
    WORSE,
    Arm,
    Verdict,
    compare_with_baseline,
    decide,
    holm,
    paired_test,
)
from uvar_tune.errors import ConfigError

REPEATS = 2000
PROTOCOL = {"samples": 1000, "reference": "abc"}


def simulate(effects: list[float], pairs: int, seed: int, repeats: int = REPEATS) -> tuple[np.ndarray, np.ndarray]:
    """Scores to minimise: baseline (repeats, pairs), candidates (repeats, M, pairs); a positive effect lowers the score.
    Each replicate moves all arms (it cancels), the baseline's own noise correlates all differences."""
    rng = np.random.default_rng(seed)
    replicate_RN = 40 + 2.0 * rng.standard_normal((repeats, pairs))
    base_RN = replicate_RN + rng.standard_normal((repeats, pairs))
    own_RMN = 0.8 * rng.standard_normal((repeats, len(effects), pairs))
    return base_RN, replicate_RN[:, None] + own_RMN - np.array(effects)[:, None]


def words(base_RN: np.ndarray, scores_RMN: np.ndarray) -> np.ndarray:
    """The verdicts (repeats, M) by the tests behind `compare_with_baseline`."""
    tests = paired_test(base_RN[:, None] - scores_RMN)
    pairs = base_RN.shape[-1]
    better, worse = (holm(np.maximum(tests[key], tests[f"{key}_skew"])) for key in ("better", "worse"))
    return np.vectorize(lambda p_better, p_worse: decide(p_better, p_worse, pairs))(better, worse)


def arms(base_N, scores_MN) -> tuple[Arm, list[Arm]]:
    def arm(name, scores):
        return Arm(name, dict(enumerate(map(float, scores))), PROTOCOL)

    return arm("baseline", base_N), [arm(f"candidate {i}", row) for i, row in enumerate(scores_MN)]


@pytest.mark.parametrize(
    "effects", [[0.0] * 3, [0.0] * 8, [2.0, 2.0, 0.0, 0.0, 0.0, -1.0]], ids=["3 null", "8 null", "mixed"]
)
@pytest.mark.parametrize("pairs", [4, 8])
def test_family_wise_error_at_most_6_percent(effects, pairs):
    words_RM = words(*simulate(effects, pairs, seed=7))
    not_better, not_worse = np.array(effects) <= 0, np.array(effects) >= 0
    assert (words_RM[:, not_better] == BETTER).any(1).mean() <= 0.06
    assert (words_RM[:, not_worse] == WORSE).any(1).mean() <= 0.06


def test_uncorrected_tests_exceed_the_level():
    base_RN, scores_RMN = simulate([0.0] * 8, 8, seed=7)
    assert (paired_test(base_RN[:, None] - scores_RMN)["better"] <= 0.05).any(1).mean() > 0.12


def test_power_at_three_standard_errors():
    pairs, sd = 10, math.sqrt(1 + 0.8**2)
    words_RM = words(*simulate([3 * sd / math.sqrt(pairs)], pairs, seed=3))
    found = (words_RM == BETTER).mean()
    exact = power(3 / math.sqrt(pairs), pairs)
    assert exact >= 0.8 and exact - 0.3 < found <= exact + 0.02  # what the test for skewed gains costs


def test_verdicts_agree_with_simulated_tests():
    base_RN, scores_RMN = simulate([1.5, 0.0, -1.5, 0.7], 6, seed=1, repeats=40)
    words_RM = words(base_RN, scores_RMN)
    computed = [
        [v.verdict for v in compare_with_baseline(*arms(b, s), direction="minimize")]
        for b, s in zip(base_RN, scores_RMN, strict=True)
    ]
    assert words_RM.tolist() == computed
    assert {BETTER, WORSE, UNDECIDED} == set(words_RM.ravel())


def test_numbers_agree_with_scipys_paired_test():
    base_RN, scores_RMN = simulate([0.8, 0.0], 7, seed=4, repeats=1)
    base_N, scores_MN = base_RN[0], scores_RMN[0]
    for verdict, scores_N in zip(
        compare_with_baseline(*arms(base_N, scores_MN), direction="minimize"), scores_MN, strict=True
    ):
        oracle = stats.ttest_rel(scores_N, base_N, alternative="less")
        interval = stats.ttest_rel(scores_N, base_N).confidence_interval(0.9)
        together = stats.ttest_rel(scores_N, base_N).confidence_interval(0.95)  # two candidates
        assert verdict.p_value == pytest.approx(oracle.pvalue)
        assert verdict.p_worse == pytest.approx(1 - oracle.pvalue)
        assert (verdict.low, verdict.high) == pytest.approx((interval.low, interval.high))
        assert (verdict.simultaneous_low, verdict.simultaneous_high) == pytest.approx((together.low, together.high))
        assert verdict.difference == pytest.approx(np.mean(scores_N) - np.mean(base_N))
        assert verdict.sd == pytest.approx(np.std(scores_N - base_N, ddof=1))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_holm_is_closed_testing_with_bonferroni(p):
    subsets = [s for size in range(1, len(p) + 1) for s in itertools.combinations(range(len(p)), size)]
    oracle = [max(min(1.0, len(s) * min(p[j] for j in s)) for s in subsets if i in s) for i in range(len(p))]
    assert holm(np.array(p)) == pytest.approx(oracle)


def test_maximising_mirrors_minimising():
    base_RN, scores_RMN = simulate([1.5, -1.5, 0.0], 8, seed=2, repeats=1)
    less = compare_with_baseline(*arms(base_RN[0], scores_RMN[0]), direction="minimize")
    more = compare_with_baseline(*arms(-base_RN[0], -scores_RMN[0]), direction="maximize")
    assert [v.verdict for v in less] == [v.verdict for v in more] == [BETTER, WORSE, UNDECIDED]
    for a, b in zip(less, more, strict=True):
        assert (a.low, a.high, a.difference) == pytest.approx((-b.high, -b.low, -b.difference))
        assert (a.p_value, a.seeds_needed) == (pytest.approx(b.p_value), b.seeds_needed)


def test_intervals_of_claims_exclude_zero():
    base_RN, scores_RMN = simulate([1.0, 0.5, 0.0, -1.0], 6, seed=9, repeats=50)
    for base_N, scores_MN in zip(base_RN, scores_RMN, strict=True):
        for v in compare_with_baseline(*arms(base_N, scores_MN), direction="minimize"):
            assert v.verdict == UNDECIDED or not v.low <= 0 <= v.high
            assert (v.p_value <= 0.05) == (v.high < 0) and (v.p_worse <= 0.05) == (v.low > 0)
            assert min(v.p_adjusted, v.p_worse_adjusted) >= min(v.p_value, v.p_worse)
            assert v.simultaneous_low <= v.low <= v.high <= v.simultaneous_high


def johnson(gains: list[float]) -> float:
    """p of "no better" by Johnson's modified t (1978), term by term: thrice his correction, where it lowers t."""
    count = len(gains)
    mean = sum(gains) / count
    variance = sum((x - mean) ** 2 for x in gains) / (count - 1)
    third = count * sum((x - mean) ** 3 for x in gains) / ((count - 1) * (count - 2))
    moved = mean + min(0.0, 3 * (third / (6 * variance * count) + third * mean**2 / (3 * variance**2)))
    return stats.t.sf(moved * math.sqrt(count / variance), count - 1)


def test_skewness_is_corrected_as_johnson_does():
    gains_N = 0.4 - np.random.default_rng(5).exponential(size=9)
    found, mirrored = paired_test(gains_N), paired_test(-gains_N)
    assert found["better_skew"] == mirrored["worse_skew"] == pytest.approx(johnson(gains_N.tolist()))
    assert found["worse_skew"] == mirrored["better_skew"] == pytest.approx(johnson((-gains_N).tolist()))
    assert found["better_skew"] > found["better"] and found["worse_skew"] == pytest.approx(found["worse"])
    assert found["skewness"] == pytest.approx(stats.skew(gains_N, bias=False))
    share = (gains_N - gains_N.mean()) ** 2
    assert found["extreme_share"] == pytest.approx(share.max() / share.sum())


@pytest.mark.parametrize("key", ["better", "worse"])
def test_skewed_differences_give_fewer_false_verdicts(key):
    """Exponential differences without an effect, ten pairs: the t test alone finds 13 % on one side."""
    gains_RN = np.random.default_rng(6).exponential(size=(20_000, 10)) - 1
    found = paired_test(gains_RN)
    alone = (found[key] <= 0.05).mean()
    both = (np.maximum(found[key], found[f"{key}_skew"]) <= 0.05).mean()
    assert both <= alone and (both < 0.08 < 0.12 < alone if key == "worse" else both < 0.05)


def test_verdict_states_skewness_and_extreme_pair():
    scores = [9.0, 9.1, 8.9, 9.05, 4.0]
    verdict = compare_with_baseline(*arms([10.0] * 5, [scores]), direction="minimize")[0]
    assert verdict.skewness < -1.5 and 0.75 < verdict.extreme_share <= 1


@pytest.mark.parametrize(
    ("direction", "search_value", "selection_bias"),
    [("minimize", 8.0, 2.0), ("minimize", 11.0, -1.0), ("maximize", 12.5, 2.5), ("maximize", 9.0, -1.0)],
)
def test_selection_bias_sign(direction, search_value, selection_bias):
    candidate = Arm("candidate", {0: 9.0, 1: 11.0, 2: 10.5, 3: 9.5}, PROTOCOL, search_value=search_value)
    baseline = Arm("baseline", {0: 10.0, 1: 10.0, 2: 12.0, 3: 9.0}, PROTOCOL)
    assert compare_with_baseline(baseline, [candidate], direction=direction)[0].selection_bias == pytest.approx(
        selection_bias
    )


def test_seeds_needed_only_for_gains():
    base_RN, scores_RMN = simulate([0.6, -0.6], 12, seed=6, repeats=1)
    up, down = compare_with_baseline(*arms(base_RN[0], scores_RMN[0]), direction="minimize")
    assert down.difference > 0 and down.seeds_needed is None
    assert up.difference < 0 and power(-up.difference / up.sd, up.seeds_needed) >= 0.8


@pytest.mark.parametrize("pairs", [1, 2, 3])
def test_too_few_pairs_give_no_verdict(pairs):
    base_N = [10.0, 10.1, 9.9][:pairs]
    scores_N = [1.0, 1.2, 0.9][:pairs]
    (verdict,) = compare_with_baseline(*arms(base_N, [scores_N]), direction="minimize")
    assert verdict.verdict == UNDECIDED and "at least 4" in verdict.note and verdict.pairs == pairs
    assert (verdict.p_value is None) == (pairs == 1)
    json.dumps(verdict.as_dict(), allow_nan=False)


def test_equal_differences_use_the_sign_test():
    """A coarse metric may give the same difference four times; without spread this is no certainty."""
    baseline, (four,) = arms([0.1, 0.2, 0.3, 0.7], [[0.3, 0.4, 0.5, 0.9]])
    (verdict,) = compare_with_baseline(baseline, [four], direction="maximize")
    assert (verdict.verdict, verdict.p_value, verdict.low) == (UNDECIDED, 2**-4, None) and "sign test" in verdict.note
    assert (
        compare_with_baseline(*arms([0.1, 0.2, 0.3, 0.7, 0.5], [[0.3, 0.4, 0.5, 0.9, 0.7]]), direction="maximize")[
            0
        ].verdict
        == BETTER
    )
    (same,) = compare_with_baseline(baseline, [dataclasses.replace(baseline, name="copy")], direction="minimize")
    assert (same.verdict, same.p_value, same.p_worse, same.difference) == (UNDECIDED, 1.0, 1.0, 0.0)


def test_verdicts_round_trip_through_json():
    base_RN, scores_RMN = simulate([1.5, 0.0], 8, seed=2, repeats=1)
    verdicts = compare_with_baseline(*arms(base_RN[0], scores_RMN[0]), direction="minimize")
    assert [v.arm for v in verdicts] == ["candidate 0", "candidate 1"]
    assert [Verdict(**json.loads(json.dumps(v.as_dict(), allow_nan=False))) for v in verdicts] == verdicts


def _arm(name="lambda", scores=None, **rest):
    return Arm(
        name, {0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0} if scores is None else scores, rest.pop("protocol", PROTOCOL), **rest
    )


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        ([], "no candidate"),
        ([_arm(scores={0: 1.0, 1: math.nan, 2: 1.0, 3: 1.0})], r"arm 'lambda', replicate 1: nan is not a score"),
        ([_arm(scores={0: 1.0, 1: 1.0, 2: 1.0})], r"arm 'lambda', replicate 3: no score, and 'baseline' has one"),
        (
            [_arm(scores={0: 1.0, 1: 1.0, 2: 1.0, 3: 1.0, 7: 1.0})],
            r"arm 'baseline', replicate 7: no score, and 'lambda' has one",
        ),
        ([_arm(), _arm()], "arm 'lambda': two arms"),
        ([_arm(name="baseline")], "arm 'baseline': two arms"),
        (
            [_arm(protocol={**PROTOCOL, "samples": 500})],
            r"arm 'lambda': protocol.samples is 500, and 1000 in 'baseline'",
        ),
        ([_arm(protocol={})], "arm 'lambda': protocol.samples is None"),
        ([_arm(search_value=math.inf)], "arm 'lambda': search value inf"),
    ],
)
def test_incomparable_arms_are_refused(candidates, message):
    with pytest.raises(ConfigError, match=message):
        compare_with_baseline(_arm(name="baseline"), candidates, direction="minimize")


def test_no_replicates_or_direction_is_refused():
    with pytest.raises(ConfigError, match="arm 'baseline': no replicate has a score"):
        compare_with_baseline(_arm(name="baseline", scores={}), [_arm(scores={})], direction="minimize")
    with pytest.raises(ConfigError, match="unknown direction 'down'"):
        compare_with_baseline(_arm(name="baseline"), [_arm()], direction="down")


def test_gain_beyond_its_skewness_is_a_gain():
    """Four gains of twenty standard deviations: the correction for their skewness must not turn them into a loss."""
    baseline, (arm,) = arms([10.0] * 4, [[9.0, 9.01, 9.02, 9.1]])
    (verdict,) = compare_with_baseline(baseline, [arm], direction="minimize")
    assert verdict.verdict == BETTER and verdict.skewness > 1


def test_skewed_pair_decides_less_than_the_t_test():
    """A gain near the level whose most extreme pair speaks against it."""
    baseline, (arm,) = arms([10.0] * 6, [[9.5, 9.6, 9.55, 9.45, 9.5, 10.4]])
    (verdict,) = compare_with_baseline(baseline, [arm], direction="minimize")
    assert verdict.p_value < verdict.p_adjusted
    assert verdict.skewness > 2 and verdict.extreme_share > 0.8
