"""The verdict on a candidate over paired seeds: better than the baseline, not distinguishable, or worse.

A pair is one replicate: candidate and baseline trained and sampled under the same seeds, whose common effect cancels in the
difference. Better: a paired one-sided t test at 5 % rejects "no better" after Holm's correction over the candidates. Worse:
the mirrored test, corrected as a family of its own. So the probability of *any* false "better" in a study is at most 5 %,
however the candidates correlate through the shared baseline, and likewise for "worse"; an arm cannot be both. Fewer than
four pairs never give a verdict.

Legend: M candidates, N pairs, … any leading axes (repeats of a simulated study).
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
from uvar_tune.analysis.results import require_same_protocol
from uvar_tune.errors import ConfigError, choose

BETTER, UNDECIDED, WORSE = "better", "not distinguishable", "worse"
_ROUNDING = 1e-12  # relative to the largest score: a smaller spread is rounding, not noise


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
        low: lower end of the 90 % interval of this difference, which excludes 0 if and only if the unadjusted one-sided
            test at 5 % rejects. None with fewer than 2 pairs or differences without spread.
        high: upper end of that interval.
        simultaneous_low: lower end of Bonferroni's interval, valid for all candidates together. If it excludes 0, so does
            the verdict; Holm's procedure may decide more.
        simultaneous_high: upper end of that interval.
        sd: standard deviation of the differences.
        pairs: N.
        p_value: of "no better", unadjusted.
        p_adjusted: of "no better", after Holm.
        p_worse: of "no worse", unadjusted.
        p_worse_adjusted: of "no worse", after Holm.
        seeds_needed: pairs with which one test at 5 % detects a true difference of this size with probability 80 %; None if
            the difference is not in the candidate's favour.
        selection_bias: the winner's curse: by how much the search value is better than the mean over fresh seeds; None
            without a search value.
        candidates: number of candidates tested together.
        confidence: of the interval.
        note: why there is no test; "" if there is one.
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

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; ``Verdict(**tree)`` restores it."""
        return dataclasses.asdict(self)


def compare_with_baseline(baseline: Arm, candidates: Sequence[Arm], *, direction: str) -> list[Verdict]:
    """Test every candidate against the baseline.

    Args:
        baseline: its scores.
        candidates: their scores on the same replicates.
        direction: of the metric, minimize or maximize.

    Returns:
        One verdict a candidate, in their order.

    Raises:
        ConfigError: no candidate or no pair, a duplicate name, arms of unequal replicates or protocols, or a score that is
            not finite; the message names it.
    """
    sign = {"minimize": -1.0, "maximize": 1.0}[choose(direction, ("minimize", "maximize"), "direction")]
    replicates = _check(baseline, candidates)
    base_N = np.array([baseline.scores[r] for r in replicates], dtype=np.float64)
    scores_MN = np.array([[arm.scores[r] for r in replicates] for arm in candidates], dtype=np.float64)
    gains_MN = sign * (scores_MN - base_N)
    resolution = _ROUNDING * max(np.abs(scores_MN).max(), np.abs(base_N).max())
    tests = [None] * len(candidates)
    if len(replicates) > 1:
        tests = [
            {key: float(of_M[i]) for key, of_M in paired_tests(gains_MN, resolution).items()}
            for i in range(len(candidates))
        ]
    return [
        _verdict(arm, sign, float(scores_N.mean()), float(base_N.mean()), len(replicates), test, len(candidates))
        for arm, scores_N, test in zip(candidates, scores_MN, tests, strict=True)
    ]


def paired_tests(gains_MN: np.ndarray, resolution: float = 0.0) -> dict[str, np.ndarray]:
    """The tests behind the verdicts: name → values (…, M).

    Args:
        gains_MN: (…, M, N ≥ 2) paired gains over the baseline, positive = better.
        resolution: a spread up to this counts as zero. The t test is then undefined and replaced by the exact sign test
            (N equal signs have probability 2⁻ᴺ).

    Returns:
        mean and sd of the gains; better and worse (unadjusted p); better_adjusted and worse_adjusted (Holm over M).
    """
    pairs = gains_MN.shape[-1]
    mean, sd = gains_MN.mean(-1), gains_MN.std(-1, ddof=1)
    flat = sd <= resolution
    statistic = mean / np.where(flat, 1.0, sd) * math.sqrt(pairs)
    better = np.where(flat, np.where(mean > resolution, 0.5**pairs, 1.0), scipy.stats.t.sf(statistic, pairs - 1))
    worse = np.where(flat, np.where(mean < -resolution, 0.5**pairs, 1.0), scipy.stats.t.cdf(statistic, pairs - 1))
    return {
        "mean": mean,
        "sd": np.where(flat, 0.0, sd),
        "better": better,
        "worse": worse,
        "better_adjusted": holm(better),
        "worse_adjusted": holm(worse),
    }


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
    arm: Arm, sign: float, value: float, baseline: float, pairs: int, test: dict[str, float] | None, candidates: int
) -> Verdict:
    difference = value - baseline
    spread = test["sd"] if test else None
    unadjusted = _interval(difference, spread, pairs, ALPHA)
    simultaneous = _interval(difference, spread, pairs, ALPHA / candidates)
    p = test or dict.fromkeys(("better", "better_adjusted", "worse", "worse_adjusted"))
    note = ""
    if pairs < MIN_PAIRS:
        note = f"{pairs} pair{'s' * (pairs > 1)}: a verdict needs at least {MIN_PAIRS}"
    elif not spread:
        note = "differences without spread: sign test instead of t test"
    return Verdict(
        arm=arm.name,
        verdict=decide(p["better_adjusted"], p["worse_adjusted"], pairs),
        value=value,
        baseline=baseline,
        direction="maximize" if sign > 0 else "minimize",
        difference=difference,
        low=unadjusted[0],
        high=unadjusted[1],
        simultaneous_low=simultaneous[0],
        simultaneous_high=simultaneous[1],
        sd=spread,
        pairs=pairs,
        p_value=p["better"],
        p_adjusted=p["better_adjusted"],
        p_worse=p["worse"],
        p_worse_adjusted=p["worse_adjusted"],
        seeds_needed=seeds_needed(sign * difference, spread) if spread else None,
        candidates=candidates,
        note=note,
        selection_bias=None if arm.search_value is None else sign * (arm.search_value - value),
    )


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


def _check(baseline: Arm, candidates: Sequence[Arm]) -> list[int]:
    """The common replicates in order; ConfigError if the arms cannot be compared."""
    if not candidates:
        raise ConfigError("no candidate to compare with the baseline", where="confirm")
    names = [arm.name for arm in (baseline, *candidates)]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise ConfigError("two arms have this name", where=f"arm {double!r}")
    if not baseline.scores:
        raise ConfigError("no replicate has a score", where=f"arm {baseline.name!r}")
    for arm in (baseline, *candidates):
        _check_arm(arm, baseline)
    return sorted(baseline.scores)


def _check_arm(arm: Arm, baseline: Arm) -> None:
    where = f"arm {arm.name!r}"
    for replicate, score in sorted(arm.scores.items()):
        if not math.isfinite(score):
            raise ConfigError(f"{score} is not a score", where=f"{where}, replicate {replicate}")
    for replicate in sorted(set(arm.scores) ^ set(baseline.scores)):
        lacking = arm if replicate in baseline.scores else baseline
        raise ConfigError(
            f"no score, and {(baseline if lacking is arm else arm).name!r} has one: every arm needs the same "
            "replicates",
            where=f"arm {lacking.name!r}, replicate {replicate}",
        )
    require_same_protocol(arm.protocol, baseline.protocol, where=where, of=repr(baseline.name))
    if arm.search_value is not None and not math.isfinite(arm.search_value):
        raise ConfigError(f"search value {arm.search_value} is not a score", where=where)
