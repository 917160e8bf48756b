"""The verdict on a candidate over paired seeds: better than the baseline, not distinguishable, or worse.

A pair is one replicate: candidate and baseline trained and sampled under the same seeds, whose common effect cancels in
the difference. Better: a paired one-sided t test rejects "no better" after Holm's correction over the candidates.
Worse: the mirrored test, corrected as a family of its own. Under a `SequentialDesign` the p-values hold at every look,
and all rounds of confirmation share one error rate. So the probability of *any* false "better" in a study is at most
5 %, whatever the pattern of looks and however the candidates correlate through the shared baseline, and likewise for
"worse"; an arm cannot be both. Fewer than four pairs never give a verdict.

The t test needs symmetric differences: of skewed ones it finds too many effects on one side (13 % instead of 5 % for
exponential differences, ten pairs). So a second test, corrected for skewness, is asked as well, and the more careful of
the two decides. It is Johnson's (1978) with three times his correction, because few pairs understate the skewness, and
only where the correction speaks against an effect. It takes away about a third of the false effects, not all. Skewness
and the weight of the most extreme pair are part of the verdict. No test can guard against rare outliers on one side
that no pair has shown yet.

A candidate may have a control of its own instead of the baseline: the cross-entropy with the candidate's other settings
(its depth, say), so that the difference is due to the terms alone.

Legend: M candidates, N pairs, … any leading axes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy  # lazy: its subpackages are imported on first use

from uvar_tune.analysis.noise import ALPHA, CONFIDENCE, MIN_PAIRS, seeds_needed
from uvar_tune.analysis.results import BASELINE, require_same_protocol
from uvar_tune.analysis.sequential import (
    SequentialDesign,
    is_futile,
    nominal_level,
    repeated_p,
    round_share,
    weighted_z,
)
from uvar_tune.errors import ConfigError, choose

BETTER, UNDECIDED, WORSE = "better", "not distinguishable", "worse"
_ROUNDING = 1e-12  # relative to the largest score: a smaller spread is rounding, not noise
_CORRECTIONS = 3.0  # of Johnson's for skewness: the skewness of few pairs is well below the true one


@dataclass(frozen=True)
class Arm:
    """One configuration's scores on fresh seeds.

    Attributes:
        name: of the arm.
        scores: replicate → score; the same replicate means the same training and sampling seeds in every arm.
        protocol: under which they were measured; it must be equal in all arms.
        search_value: its score in the search; None if it was not searched (baseline, arms of the 2×2 design).
    """

    name: str
    scores: Mapping[int, float]
    protocol: Mapping[str, Any] = field(default_factory=dict)
    search_value: float | None = None


@dataclass(frozen=True)
class Verdict:
    """The result of the paired tests on one candidate, in the unit of the metric; differences are candidate − baseline.

    Attributes:
        arm: name of the candidate.
        verdict: better, not distinguishable or worse.
        direction: of the metric, minimize or maximize.
        value: the candidate's mean over the replicates.
        baseline: the baseline's mean over the replicates.
        difference: of the means.
        low: lower end of the 90 % interval of this difference alone and at this look alone, which excludes 0 if and
            only if a single one-sided t test at 5 % rejects. None with fewer than 2 pairs or differences without
            spread.
        high: upper end of that interval.
        simultaneous_low: lower end of Student's interval that holds for all candidates (Bonferroni) and all looks
            together. Holm's procedure may decide more, the test for skewed differences less.
        simultaneous_high: upper end of that interval.
        sd: standard deviation of the differences.
        pairs: N.
        p_value: of "no better" at this look alone, not adjusted.
        p_adjusted: of "no better", over all looks and rounds, after Holm.
        p_worse: of "no worse" at this look alone, not adjusted.
        p_worse_adjusted: of "no worse", over all looks and rounds, after Holm.
        seeds_needed: pairs with which one test at 5 % detects a true difference of this size with probability 80 %;
            None if the difference is not in the candidate's favour.
        selection_bias: the winner's curse: by how much the search value is better than the mean over fresh seeds; None
            without a search value.
        candidates: number of candidates tested together.
        confidence: of the interval.
        note: why there is no test; "" if there is one.
        max_pairs: pairs at the last look of the design; None without a sequential design.
        round_number: of the confirmation.
        stopped: why no further pairs are needed: better, worse, futile or complete; "" while more are to come.
        control: the arm that it is compared with; ``baseline`` above is the mean of this arm.
        skewness: of the differences; None with fewer than 3 pairs or without spread.
        extreme_share: share of the sum of squares of the differences around their mean that the most extreme pair has:
            1/N at least, near 1 if one pair decides the spread. None as above.
    """

    arm: str
    verdict: str
    direction: str
    value: float
    baseline: float
    difference: float
    low: float | None
    high: float | None
    simultaneous_low: float | None
    simultaneous_high: float | None
    sd: float | None
    pairs: int
    p_value: float | None
    p_adjusted: float | None
    p_worse: float | None
    p_worse_adjusted: float | None
    seeds_needed: int | None
    selection_bias: float | None
    candidates: int
    confidence: float = CONFIDENCE
    note: str = ""
    max_pairs: int | None = None
    round_number: int = 1
    stopped: str = ""
    control: str = BASELINE
    skewness: float | None = None
    extreme_share: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; ``Verdict(**tree)`` restores it."""
        return dataclasses.asdict(self)


def compare_with_baseline(
    baseline: Arm,
    candidates: Sequence[Arm],
    *,
    direction: str,
    design: SequentialDesign | None = None,
    controls: Mapping[str, Arm] | None = None,
) -> list[Verdict]:
    """Test every candidate against the baseline, or against its control.

    Args:
        baseline: its scores.
        candidates: their scores. Without a design, on the same replicates as the baseline; with one, on the first of
            them, because an arm may stop before the others.
        direction: of the metric, minimize or maximize.
        design: of a sequential test; None for a single look at a number of pairs that was fixed beforehand.
        controls: candidate → the arm that it is compared with instead of the baseline.

    Returns:
        One verdict a candidate, in their order.

    Raises:
        ConfigError: no candidate or no pair, a duplicate name, arms of unequal replicates or protocols, or a score that
            is not finite; the message names it.
    """
    sign = {"minimize": -1.0, "maximize": 1.0}[choose(direction, ("minimize", "maximize"), "direction")]
    bases = [(controls or {}).get(arm.name, baseline) for arm in candidates]
    _check(bases, candidates, prefix=design is not None)
    scores = [_values(arm, sorted(arm.scores)) for arm in candidates]
    base_scores = [_values(base, sorted(arm.scores)) for base, arm in zip(bases, candidates, strict=True)]
    resolution = _ROUNDING * max(np.abs(values_N).max() for values_N in (*base_scores, *scores))
    tests = [
        _test(sign * (scores_N - base_N), resolution, design)
        for scores_N, base_N in zip(scores, base_scores, strict=True)
    ]
    for key in ("better", "worse"):
        adjusted = holm(np.array([test[f"{key}_over_looks"] for test in tests]))
        tests = [{**test, f"{key}_adjusted": float(p)} for test, p in zip(tests, adjusted, strict=True)]
    return [
        dataclasses.replace(_verdict(arm, sign, scores_N, base_N, test, len(candidates), design), control=base.name)
        for arm, base, scores_N, base_N, test in zip(candidates, bases, scores, base_scores, tests, strict=True)
    ]


def _values(arm: Arm, replicates: Sequence[int]) -> np.ndarray:
    return np.array([arm.scores[replicate] for replicate in replicates], dtype=np.float64)


def _test(gains_N: np.ndarray, resolution: float, design: SequentialDesign | None) -> dict[str, float]:
    """One candidate's test at its last look, and its p-values over all looks and rounds; p = 1 with a single pair."""
    if len(gains_N) < 2:
        return dict.fromkeys(("better_over_looks", "worse_over_looks"), 1.0)
    last = {key: float(value) for key, value in paired_test(gains_N, resolution).items()}
    if design is None or len(gains_N) < MIN_PAIRS:
        return {**last, **{f"{key}_over_looks": max(last[key], last[f"{key}_skew"]) for key in ("better", "worse")}}
    over_looks = {}
    for key in ("better", "worse"):
        looks = []
        for n in range(MIN_PAIRS, min(len(gains_N), design.max_pairs) + 1):
            look = paired_test(gains_N[:n], resolution)
            student = weighted_z(look[key], n, design.max_pairs)
            looks.append(min(student, weighted_z(look[f"{key}_skew"], n, design.max_pairs)))
        p = float(repeated_p(np.max(looks), design.max_pairs)) / round_share(design.round_number)
        over_looks[f"{key}_over_looks"] = min(p, 1.0)
    return {**last, **over_looks}


def paired_test(gains_N: np.ndarray, resolution: float = 0.0) -> dict[str, np.ndarray]:
    """The paired one-sided tests of "no better" and "no worse" at one look: Student's, and one for skewed gains.

    Args:
        gains_N: (…, N ≥ 2) paired gains over the baseline, positive = better.
        resolution: a spread up to this counts as zero. The t test is then undefined and replaced by the exact sign test
            (N equal signs have probability 2⁻ᴺ).

    Returns:
        mean, sd, skewness and extreme_share of the gains; better and worse: p-values of the t test; better_skew and
        worse_skew: those of the test corrected for skewness. Each of shape (…).
    """
    pairs = gains_N.shape[-1]
    mean, sd = gains_N.mean(-1), gains_N.std(-1, ddof=1)
    flat = sd <= resolution
    statistic = mean / np.where(flat, 1.0, sd) * math.sqrt(pairs)
    better = np.where(flat, np.where(mean > resolution, 0.5**pairs, 1.0), scipy.stats.t.sf(statistic, pairs - 1))
    worse = np.where(flat, np.where(mean < -resolution, 0.5**pairs, 1.0), scipy.stats.t.cdf(statistic, pairs - 1))
    tests = {"mean": mean, "sd": np.where(flat, 0.0, sd), "better": better, "worse": worse}
    if pairs < 3:
        none = np.full_like(mean, np.nan)
        return {**tests, "better_skew": better, "worse_skew": worse, "skewness": none, "extreme_share": none}
    spread = np.where(flat, 1.0, sd)
    centred_N = (gains_N - mean[..., None]) / spread[..., None]
    skewness = np.where(flat, 0.0, (centred_N**3).mean(-1) * pairs**2 / ((pairs - 1) * (pairs - 2)))
    gain = mean / spread
    low, high = _corrected(gain, skewness, pairs), -_corrected(-gain, -skewness, pairs)
    return {
        **tests,
        "better_skew": np.where(flat, better, scipy.stats.t.sf(low, pairs - 1)),
        "worse_skew": np.where(flat, worse, scipy.stats.t.cdf(high, pairs - 1)),
        "skewness": skewness,
        "extreme_share": np.where(flat, np.nan, (centred_N**2).max(-1) / (pairs - 1)),
    }


def _corrected(gain: np.ndarray, skewness: np.ndarray, pairs: int) -> np.ndarray:
    """Student's statistic of a mean gain (in standard deviations), corrected against a gain whose skewness is negative.

    The correction of Johnson grows with the square of the gain and would turn a large gain into a loss, where it does
    not hold any more. Up to the gain at which it begins to do so it is his; beyond, the statistic goes on with slope 1.
    """
    against = _CORRECTIONS * np.minimum(skewness, 0.0)
    turn = -1.5 / np.minimum(against, -1e-12)
    inner = np.minimum(gain, turn)
    return (gain + against * (1 / (6 * pairs) + inner**2 / 3)) * math.sqrt(pairs)


def holm(p_M: np.ndarray) -> np.ndarray:
    """Holm's (1979) adjusted p-values along the last axis: valid under any dependence."""
    order = np.argsort(p_M, axis=-1, kind="stable")
    steps = np.take_along_axis(p_M, order, -1) * np.arange(p_M.shape[-1], 0, -1)
    adjusted = np.minimum(np.maximum.accumulate(steps, axis=-1), 1.0)
    return np.take_along_axis(adjusted, np.argsort(order, axis=-1, kind="stable"), -1)


def decide(better_adjusted: float, worse_adjusted: float, pairs: int) -> str:
    """The verdict that follows from two adjusted p-values."""
    if pairs < MIN_PAIRS:
        return UNDECIDED
    return BETTER if better_adjusted <= ALPHA else WORSE if worse_adjusted <= ALPHA else UNDECIDED


def _verdict(
    arm: Arm,
    sign: float,
    scores_N: np.ndarray,
    base_N: np.ndarray,
    test: dict[str, float],
    candidates: int,
    design: SequentialDesign | None,
) -> Verdict:
    pairs, value, baseline = len(scores_N), float(scores_N.mean()), float(base_N.mean())
    difference, spread = value - baseline, test.get("sd")
    tail = (ALPHA if design is None else design.level) / candidates
    if design is not None and pairs >= MIN_PAIRS:
        tail = nominal_level(tail, min(pairs, design.max_pairs), design.max_pairs)
    low, high = _interval(difference, spread, pairs, ALPHA)
    simultaneous_low, simultaneous_high = _interval(difference, spread, pairs, tail)
    note = ""
    if pairs < MIN_PAIRS:
        note = f"{pairs} pair{'s' * (pairs > 1)}: a verdict needs at least {MIN_PAIRS}"
    elif not spread:
        note = "differences without spread: sign test instead of t test"
    verdict = decide(test["better_adjusted"], test["worse_adjusted"], pairs)
    return Verdict(
        arm=arm.name,
        verdict=verdict,
        value=value,
        baseline=baseline,
        direction="maximize" if sign > 0 else "minimize",
        difference=difference,
        low=low,
        high=high,
        simultaneous_low=simultaneous_low,
        simultaneous_high=simultaneous_high,
        sd=spread,
        pairs=pairs,
        p_value=test.get("better"),
        p_adjusted=test["better_adjusted"] if test.get("better") is not None else None,
        p_worse=test.get("worse"),
        p_worse_adjusted=test["worse_adjusted"] if test.get("worse") is not None else None,
        seeds_needed=seeds_needed(sign * difference, spread) if spread else None,
        candidates=candidates,
        note=note,
        selection_bias=None if arm.search_value is None else sign * (arm.search_value - value),
        skewness=_number(sign * test.get("skewness", math.nan)) if spread else None,
        extreme_share=_number(test.get("extreme_share", math.nan)),
        max_pairs=design.max_pairs if design else None,
        round_number=design.round_number if design else 1,
        stopped=_stopped(verdict, sign * difference, spread, pairs, candidates, design) if design else "",
    )


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _stopped(
    verdict: str, gain: float, spread: float | None, pairs: int, candidates: int, design: SequentialDesign
) -> str:
    """Why the arm needs no further pairs; "" while more are to come."""
    if verdict != UNDECIDED:
        return verdict
    if pairs >= design.max_pairs:
        return "complete"
    futile = spread is not None and is_futile(gain, spread, pairs, design.max_pairs, design.level / candidates)
    return "futile" if futile else ""


def _interval(centre: float, sd: float | None, pairs: int, tail: float) -> tuple[float | None, float | None]:
    if not sd:
        return None, None
    half = half_width(sd, pairs, tail)
    return centre - half, centre + half


def half_width(sd: float, count: int, tail: float) -> float:
    """Half the width of Student's interval around a mean.

    Args:
        sd: standard deviation of the values.
        count: number of values.
        tail: probability beyond each end.
    """
    return float(scipy.stats.t.isf(tail, count - 1)) * sd / math.sqrt(count)


def _check(bases: Sequence[Arm], candidates: Sequence[Arm], prefix: bool) -> None:
    """Raise ConfigError if the arms cannot be compared.

    Args:
        bases: the arm that each candidate is compared with.
        candidates: the other arms.
        prefix: whether an arm may have the first of its base's replicates only.
    """
    if not candidates:
        raise ConfigError("no candidate to compare with the baseline", where="confirm")
    names = [*dict.fromkeys(base.name for base in bases), *(arm.name for arm in candidates)]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise ConfigError("two arms have this name", where=f"arm {double!r}")
    for base, arm in zip(bases, candidates, strict=True):
        _check_arm(base, base, prefix)
        _check_arm(arm, base, prefix)


def _check_arm(arm: Arm, baseline: Arm, prefix: bool) -> None:
    where = f"arm {arm.name!r}"
    for replicate, score in sorted(arm.scores.items()):
        if not math.isfinite(score):
            raise ConfigError(f"{score} is not a score", where=f"{where}, replicate {replicate}")
    if not arm.scores:
        raise ConfigError("no replicate has a score", where=where)
    expected = sorted(baseline.scores)[: len(arm.scores)] if prefix else baseline.scores
    for replicate in sorted(set(arm.scores) ^ set(expected)):
        lacking = arm if replicate in baseline.scores else baseline
        raise ConfigError(
            f"no score, and {(baseline if lacking is arm else arm).name!r} has one: every arm needs the same "
            "replicates",
            where=f"arm {lacking.name!r}, replicate {replicate}",
        )
    require_same_protocol(arm.protocol, baseline.protocol, where=where, of=repr(baseline.name))
    if arm.search_value is not None and not math.isfinite(arm.search_value):
        raise ConfigError(f"search value {arm.search_value} is not a score", where=where)
