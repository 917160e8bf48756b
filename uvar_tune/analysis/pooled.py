"""Several studies of one grid, each under a seed of its own, read together: every configuration is an arm, every study a replicate.

All trials of a grid share their training and sampling seeds (`uvar_tune.search.study`), so each study holds one pair of every arm
with the baseline, and the verdicts are those of the phase `confirm`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from uvar_tune.analysis.results import BASELINE, StudyResults, TrialResult
from uvar_tune.analysis.verdict import Arm, Verdict, judge, reach
from uvar_tune.config.schema import Config
from uvar_tune.config.space import searched
from uvar_tune.errors import ConfigError
from uvar_tune.search.protocol import require_same_protocol
from uvar_tune.study_dir import differences

CONFIDENCE = 0.95  # of the interval around a mean over seeds


@dataclass(frozen=True)
class Pooled:
    """What the studies found of the arms that have a score in each of them.

    Attributes:
        studies: name → `study.seed`, in the order given.
        arms: name → {seed: trial}, the baseline first, the others in the order of the grid.
        verdicts: one an arm beside the baseline; lost: arm → why it has none.
        first: the first study, for what all have in common.
    """

    studies: dict[str, int]
    arms: dict[str, dict[int, TrialResult]]
    verdicts: dict[str, Verdict]
    lost: dict[str, str]
    first: StudyResults


def pool(studies: Sequence[tuple[Config, StudyResults]]) -> Pooled:
    """The studies as replicates of each other.

    Raises:
        ConfigError: fewer than two; a seed twice; a study that is no grid, or that differs from the first in more than its name
            and its seed; a baseline without a score, or no other arm.
    """
    _check(studies)
    names = list(searched(studies[0][0]))
    found: dict[str, dict[int, TrialResult]] = {}
    lost: dict[str, str] = {}
    for config, results in studies:
        for trial in results.trials:
            arm = BASELINE if trial.kind == BASELINE else ", ".join(str(trial.params[name]) for name in names)
            found.setdefault(arm, {})[config.study.seed] = trial
            if trial.value is None:
                lost.setdefault(arm, f"{results.name}, trial {trial.number}: {trial.outcome or trial.state.lower()}")
    for arm, trials in found.items():
        for config, results in studies:
            if config.study.seed not in trials:
                lost.setdefault(arm, f"{results.name} has not come to it yet")
    arms = {arm: trials for arm, trials in found.items() if arm not in lost}
    if BASELINE not in arms or len(arms) < 2:
        raise ConfigError(
            f"nothing to compare: {'; '.join(f'{arm} ({why})' for arm, why in lost.items())}", where="--study"
        )
    protocol = studies[0][1].protocol
    base, *others = (
        Arm(arm, {seed: trial.value for seed, trial in trials.items()}, protocol) for arm, trials in arms.items()
    )
    verdicts = {one.arm: one for one in judge(base, others, direction=studies[0][1].direction)}
    return Pooled({results.name: config.study.seed for config, results in studies}, arms, verdicts, lost, studies[0][1])


def mean_and_reach(values: Sequence[float]) -> tuple[float, float]:
    """(mean, half the width of its interval at `CONFIDENCE` by Student's t), of two values or more."""
    return float(np.mean(values)), reach(float(np.std(values, ddof=1)), len(values), (1 - CONFIDENCE) / 2)


def _check(studies: Sequence[tuple[Config, StudyResults]]) -> None:
    if len(studies) < 2:
        raise ConfigError("one study has nothing to be pooled with: give --study twice or more", where="--study")
    first, results = studies[0]
    seeds: dict[int, str] = {}
    for config, other in studies:
        study = config.study
        if study.sampler != "grid":
            raise ConfigError(
                f"study {study.name!r} draws new training seeds for each trial (sampler {study.sampler!r}), so that "
                "its trials are no pairs; pooled are studies with sampler 'grid'",
                where="--study",
            )
        if study.seed in seeds:
            raise ConfigError(
                f"studies {seeds[study.seed]!r} and {study.name!r} have the same study.seed {study.seed}: replicates "
                "have seeds of their own",
                where="--study",
            )
        seeds[study.seed] = study.name
        renamed = config.with_values({"study.name": first.study.name, "study.seed": first.study.seed})
        if difference := differences(first, renamed):
            raise ConfigError(
                f"study {study.name!r} is no replicate of {first.study.name!r}: {'; '.join(difference[:4])}",
                where="--study",
            )
        if other.protocol and results.protocol:
            require_same_protocol(
                other.protocol, results.protocol, where=f"study {study.name!r}", of=f"study {first.study.name!r}"
            )
