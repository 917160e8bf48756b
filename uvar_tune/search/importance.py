"""Which searched parameters decide the objective: PED-ANOVA and fANOVA, both as Optuna computes them.

They answer different questions. PED-ANOVA (Watanabe et al. 2023): which parameter separates the best trials from the
others. fANOVA (Hutter et al. 2014): whose main effect explains the variance over the whole space, as a random forest
sees it. Both work on the scale on which a parameter was searched: what was searched on a log scale enters as its
logarithm, because the forest averages evenly over the range that it is given.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

PED_ANOVA, FANOVA = "PED-ANOVA", "fANOVA"
MIN_TRIALS = 20  # fewer say nothing about a handful of parameters
_TOP, _TOP_TRIALS = 0.1, 5  # PED-ANOVA's best trials: a tenth of all, but at least five
# Shallow trees find main effects as deep ones do; the time of the deep ones grows with the square of the trials.
_TREES, _DEPTH = 64, 6


def importances(trials: Iterable[FrozenTrial], direction: str) -> dict[str, dict[str, float | None] | None]:
    """Evaluator → {parameter → its share of all, most important first}, of the first objective.

    Args:
        trials: of the search, in any state; those without a value or without parameters (the baseline) do not count.
        direction: of the objective, minimize or maximize.

    Returns:
        None in place of an evaluator's answer where fewer than `MIN_TRIALS` count or their values do not differ enough
        to separate the best from the others; None in place of a share where the parameter is searched in some trials
        only and the evaluator (fANOVA) needs it in all.
    """
    counted = [trial for trial in trials if trial.state == TrialState.COMPLETE and trial.distributions]
    counted = [trial for trial in counted if math.isfinite(trial.values[0])]
    top = max(_TOP, _TOP_TRIALS / max(len(counted), 1))
    if len(counted) < MIN_TRIALS or not _apart([trial.values[0] for trial in counted], top, direction):
        return {PED_ANOVA: None, FANOVA: None}
    from optuna.importance import (  # with which scikit-learn is loaded
        FanovaImportanceEvaluator,
        PedAnovaImportanceEvaluator,
        get_param_importances,
    )

    everywhere = set.intersection(*(set(trial.distributions) for trial in counted))
    sometimes = {name for trial in counted for name in trial.distributions} - everywhere
    study = optuna.create_study(direction=direction, storage=optuna.storages.InMemoryStorage())
    study.add_trials([_as_searched(trial) for trial in counted])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a condition that few trials met: its share is small and kept as it is
        ped = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(target_quantile=top))
        forest = FanovaImportanceEvaluator(n_trees=_TREES, max_depth=_DEPTH, seed=0)
        fanova = get_param_importances(study, evaluator=forest) if everywhere else None
    return {PED_ANOVA: _sorted(ped), FANOVA: fanova and {**_sorted(fanova), **dict.fromkeys(sorted(sometimes))}}


def _apart(values: list[float], top: float, direction: str) -> bool:
    """Whether the best share ``top`` of the values is not equal to the worst."""
    ordered = sorted(values, reverse=direction == "maximize")
    return ordered[math.ceil(top * len(ordered)) - 1] != ordered[-1]


def _as_searched(trial: FrozenTrial) -> FrozenTrial:
    params, distributions = {}, {}
    for name, distribution in trial.distributions.items():
        log = _is_log(distribution)
        params[name] = math.log(trial.params[name]) if log else trial.params[name]
        distributions[name] = (
            FloatDistribution(math.log(distribution.low), math.log(distribution.high)) if log else distribution
        )
    return create_trial(value=trial.values[0], params=params, distributions=distributions)


def _is_log(distribution: BaseDistribution) -> bool:
    return not isinstance(distribution, CategoricalDistribution) and distribution.log


def _sorted(shares: dict[str, float]) -> dict[str, float]:
    return {name: float(share) for name, share in sorted(shares.items(), key=lambda item: (-item[1], item[0]))}
