"""Importances on studies whose answer is planted."""

from __future__ import annotations

import math
import random

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from uvar_tune.search.importance import FANOVA, MIN_TRIALS, PED_ANOVA, importances

LAMBDA_1, LAMBDA_2, REFERENCE, NEIGHBOURS = (
    f"loss.{name}" for name in ("lambda_1", "lambda_2", "reference", "neighbours")
)
SPACE = {
    LAMBDA_1: FloatDistribution(0.01, 6, log=True),
    LAMBDA_2: FloatDistribution(0.004, 0.9, log=True),
    REFERENCE: CategoricalDistribution(["normal", "semantic"]),
}


def planted(count: int, seed: int = 0, sign: float = 1.0) -> list[FrozenTrial]:
    """The score is a bowl in log λ1; λ2 and the reference change nothing; a little noise."""
    rng = random.Random(seed)
    trials = []
    for _ in range(count):
        params = {
            LAMBDA_1: 0.01 * 600 ** rng.random(),
            LAMBDA_2: 0.004 * 225 ** rng.random(),
            REFERENCE: rng.choice(["normal", "semantic"]),
        }
        value = math.log10(params[LAMBDA_1] / 0.3) ** 2 + rng.gauss(0, 0.05)
        trials.append(create_trial(value=sign * value, params=params, distributions=SPACE))
    return trials


def test_both_find_the_parameter_that_decides():
    for shares in importances(planted(80), "minimize").values():
        assert list(shares)[0] == LAMBDA_1 and shares[LAMBDA_1] > 0.7
        assert math.fsum(shares.values()) == pytest.approx(1) and set(shares) == set(SPACE)


def test_direction_decides_the_best_trials():
    assert importances(planted(60), "minimize") == importances(planted(60, sign=-1.0), "maximize")
    assert importances(planted(60), "minimize")[PED_ANOVA] != importances(planted(60), "maximize")[PED_ANOVA]


def test_log_parameters_are_compared_on_a_log_scale():
    logged = []
    for trial in planted(60):
        params = {
            **trial.params,
            LAMBDA_1: math.log(trial.params[LAMBDA_1]),
            LAMBDA_2: math.log(trial.params[LAMBDA_2]),
        }
        space = {
            **SPACE,
            LAMBDA_1: FloatDistribution(math.log(0.01), math.log(6)),
            LAMBDA_2: FloatDistribution(math.log(0.004), math.log(0.9)),
        }
        logged.append(create_trial(value=trial.value, params=params, distributions=space))
    assert importances(planted(60), "minimize") == importances(logged, "minimize")


def test_only_scored_trials_count():
    counted = planted(MIN_TRIALS)
    failed = {LAMBDA_1: 1.0, LAMBDA_2: 0.1, REFERENCE: "normal"}
    others = [create_trial(value=0.0), create_trial(state=TrialState.FAIL, params=failed, distributions=SPACE)]
    others += [create_trial(value=math.inf, params=trial.params, distributions=SPACE) for trial in counted[:3]]
    assert importances([*others, *counted], "minimize") == importances(counted, "minimize")
    assert importances([*others, *counted[1:]], "minimize") == {PED_ANOVA: None, FANOVA: None}


@pytest.mark.parametrize("values", [[1.0] * 30, [1.0] * 29 + [0.5]])
def test_no_best_part_of_the_trials_no_answer(values):
    """All equal, or one better than all others, which are the worst: the best five and the worst are one."""
    trials = [
        create_trial(value=value, params=trial.params, distributions=SPACE)
        for value, trial in zip(values, planted(30), strict=True)
    ]
    assert importances(trials, "minimize") == {PED_ANOVA: None, FANOVA: None}


def test_equal_scores_and_a_worse_one_have_shares():
    trials = [
        create_trial(value=2.0 if index == 0 else 1.0, params=trial.params, distributions=SPACE)
        for index, trial in enumerate(planted(30))
    ]
    for shares in importances(trials, "minimize").values():
        assert math.fsum(shares.values()) == pytest.approx(1)


def test_conditional_parameter_has_no_fanova_share():
    rng, trials = random.Random(1), []
    for trial in planted(60):
        params, space = dict(trial.params), dict(SPACE)
        if params[REFERENCE] == "semantic":
            params[NEIGHBOURS], space[NEIGHBOURS] = rng.randint(2, 32), IntDistribution(2, 32, log=True)
        trials.append(create_trial(value=trial.value, params=params, distributions=space))
    found = importances(trials, "minimize")
    assert found[FANOVA][NEIGHBOURS] is None and found[FANOVA][LAMBDA_1] > 0.7
    assert 0 <= found[PED_ANOVA][NEIGHBOURS] < 0.3


def test_no_common_parameter_means_no_fanova():
    trials = [
        create_trial(value=trial.value, params={name: trial.params[name]}, distributions={name: SPACE[name]})
        for trial, name in zip(planted(40), [LAMBDA_1, LAMBDA_2] * 20, strict=True)
    ]
    found = importances(trials, "minimize")
    assert found[FANOVA] is None and set(found[PED_ANOVA]) == {LAMBDA_1, LAMBDA_2}
