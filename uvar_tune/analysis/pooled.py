"""Several studies of one grid under different seeds, pooled: every configuration is an arm, every study a replicate.

All trials of a grid share their training and sampling seeds (`uvar_tune.search.study`). Each study therefore holds one
pair of every arm with the baseline, and the verdicts are computed as in the phase `confirm`: sequentially, with
`MAX_PAIRS` at the last look, so that adding one study after the other and looking each time keeps the error rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from uvar_tune.analysis.results import BASELINE, StudyResults, TrialResult, require_same_protocol
from uvar_tune.analysis.sequential import SequentialDesign
from uvar_tune.analysis.verdict import Arm, Verdict, compare_with_baseline, half_width
from uvar_tune.config.schema import Config
from uvar_tune.config.space import searched_entries
from uvar_tune.errors import ConfigError
from uvar_tune.study_dir import differences

MAX_PAIRS = 32  # studies that can be pooled: the last look of the sequential test
CONFIDENCE = 0.95  # of the interval around a mean over seeds


@dataclass(frozen=True)
class Pooled:
    """The arms that have a score in every study.

    Attributes:
        studies: name → `study.seed`, in the order given.
        arms: name → {seed: trial}, the baseline first, the others in the order of the grid.
        verdicts: arm → verdict, the baseline excepted.
        untested: arm → why it has no verdict.
        first: the first study, for what all have in common.
    """

    studies: dict[str, int]
    arms: dict[str, dict[int, TrialResult]]
    verdicts: dict[str, Verdict]
    untested: dict[str, str]
    first: StudyResults


def pool(studies: Sequence[tuple[Config, StudyResults]]) -> Pooled:
    """Pool studies as replicates of each other.

    Args:
        studies: configuration and results of each.

    Raises:
        ConfigError: fewer than two studies; a duplicate seed; a study that is not a grid, or that differs from the
            first in more than its name and its seed; a baseline without a score, or no other arm.
    """
    _check(studies)
    names = list(searched_entries(studies[0][0]))
    trials_of: dict[str, dict[int, TrialResult]] = {}
    untested: dict[str, str] = {}
    for config, results in studies:
        for trial in results.trials:
            arm = BASELINE if trial.kind == BASELINE else ", ".join(str(trial.params[name]) for name in names)
            trials_of.setdefault(arm, {})[config.study.seed] = trial
            if trial.value is None:
                untested.setdefault(
                    arm, f"{results.name}, trial {trial.number}: {trial.outcome or trial.state.lower()}"
                )
    for arm, trials in trials_of.items():
        for config, results in studies:
            if config.study.seed not in trials:
                untested.setdefault(arm, f"{results.name} has not run it yet")
    arms = {arm: trials for arm, trials in trials_of.items() if arm not in untested}
    if BASELINE not in arms or len(arms) < 2:
        reasons = "; ".join(f"{arm} ({reason})" for arm, reason in untested.items())
        raise ConfigError(f"nothing to compare: {reasons}", where="--study")
    first = studies[0][1]
    baseline, *candidates = (
        Arm(arm, {seed: trial.value for seed, trial in trials.items()}, first.protocol) for arm, trials in arms.items()
    )
    design = SequentialDesign(max_pairs=MAX_PAIRS)
    verdicts = compare_with_baseline(baseline, candidates, direction=first.direction, design=design)
    return Pooled(
        studies={results.name: config.study.seed for config, results in studies},
        arms=arms,
        verdicts={verdict.arm: verdict for verdict in verdicts},
        untested=untested,
        first=first,
    )


def mean_with_half_width(values: Sequence[float]) -> tuple[float, float]:
    """The mean of at least two values, and half the width of its interval at `CONFIDENCE` by Student's t."""
    return float(np.mean(values)), half_width(float(np.std(values, ddof=1)), len(values), (1 - CONFIDENCE) / 2)


def _check(studies: Sequence[tuple[Config, StudyResults]]) -> None:
    if len(studies) < 2:
        raise ConfigError("a single study cannot be pooled: give --study twice or more", where="--study")
    if len(studies) > MAX_PAIRS:
        raise ConfigError(f"{len(studies)} studies: at most {MAX_PAIRS} can be pooled", where="--study")
    first, results = studies[0]
    seeds: dict[int, str] = {}
    for config, other in studies:
        study = config.study
        if study.sampler != "grid":
            raise ConfigError(
                f"study {study.name!r} draws new training seeds for each trial (sampler {study.sampler!r}), so its "
                "trials are not paired; only studies with sampler 'grid' can be pooled",
                where="--study",
            )
        if study.seed in seeds:
            raise ConfigError(
                f"studies {seeds[study.seed]!r} and {study.name!r} have the same study.seed {study.seed}: replicates "
                "need different seeds",
                where="--study",
            )
        seeds[study.seed] = study.name
        renamed = config.with_values({"study.name": first.study.name, "study.seed": first.study.seed})
        if difference := differences(first, renamed):
            raise ConfigError(
                f"study {study.name!r} is not a replicate of {first.study.name!r}: {'; '.join(difference[:4])}",
                where="--study",
            )
        if other.protocol and results.protocol:
            require_same_protocol(
                other.protocol, results.protocol, where=f"study {study.name!r}", of=f"study {first.study.name!r}"
            )
