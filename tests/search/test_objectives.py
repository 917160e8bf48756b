"""What may be an objective, who is on the Pareto front, when a constraint holds, what a budget counts, what rungs foretell."""

from __future__ import annotations

import itertools
import random

import pytest

from tests.helpers.search_cases import study_config
from uvar_tune.errors import ConfigError
from uvar_tune.search.budget import Ledger, spent
from uvar_tune.search.objectives import check_objective, directions, named_scores, pareto_front, violations
from uvar_tune.search.pruning import rung_correlation


@pytest.mark.parametrize(
    "study, said",
    [
        ({"metric": "loss/total"}, "contains the searched λ"),
        ({"metric": "loss"}, "contains the searched λ"),
        ({"further_metrics": ["loss/ce"]}, "contains the searched λ"),
        ({"constraints": {"loss/total": {"max": 1}}}, "contains the searched λ"),
        ({"metric": "fdi"}, "did you mean 'fid'"),
        ({"metric": "nll_token"}, "'nll_token' is not one of"),  # all but prefers λ = 0
        ({"further_metrics": ["density"]}, "'density' has a target"),
        ({"further_metrics": ["code_entropy"]}, "'code_entropy' has a target"),
        ({"further_metrics": ["learning_rate"]}, "'learning_rate' is not one of"),
        ({"constraints": {"nll_tokn": {"max": 1}}}, "did you mean 'nll_token'"),
        (
            {"further_metrics": ["ece_token"], "rung_metric": "ece_token", "pruner": "median", "rungs": [6400]},
            "cannot stop trials",
        ),
    ],
)
def test_objectives_that_a_study_must_not_have(study, said):
    with pytest.raises(ConfigError, match=said):
        check_objective(study_config(**study))


def test_objectives_must_be_computed():
    config = study_config(further_metrics=["is"]).with_values({"evaluation.metrics": ["fid"]})
    with pytest.raises(ConfigError, match="'is' is not among evaluation.metrics"):
        check_objective(config)


def test_objectives_of_a_good_study():
    config = study_config(
        further_metrics=["is", "coverage", "ece_token"],
        constraints={"nll_token": {"max_above_baseline": 0.05}, "gpu_peak_gib": {"max": 70}},
    )
    check_objective(config)
    assert directions(config) == ["minimize", "maximize", "maximize", "minimize"]
    assert named_scores(config) == {"fid", "is", "coverage", "ece_token", "nll_token"}


def test_metrics_with_a_target_can_be_bounded():
    check_objective(study_config(constraints={"density": {"min": 0.8, "max": 1.2}}))


def test_violations_are_positive_beyond_a_bound():
    bounds = {"nll_token": {"max_above_baseline": 0.5, "max": 3.0}, "is": {"min": 2.0, "max_below_baseline": 1.0}}
    found = violations(study_config(constraints=bounds), {"nll_token": 2.75, "is": 1.5}, {"nll_token": 2.0, "is": 4.0})
    assert found == {
        "nll_token max": -0.25,
        "nll_token max_above_baseline": 0.25,
        "is min": 0.5,
        "is max_below_baseline": 1.5,
    }


def test_the_pareto_front_is_what_nobody_beats():
    draw = random.Random(1)
    for size, dimensions in itertools.product((1, 2, 7, 30), (1, 2, 3)):
        points = [[float(draw.randrange(5)) for _ in range(dimensions)] for _ in range(size)]
        wanted = [draw.choice(["minimize", "maximize"]) for _ in range(dimensions)]

        def better(a, b, wanted=wanted):  # at least as good in each, better in one
            pairs = [
                (x, y) if direction == "minimize" else (y, x) for x, y, direction in zip(a, b, wanted, strict=True)
            ]
            return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)

        unbeaten = [i for i, point in enumerate(points) if not any(better(other, point) for other in points)]
        assert pareto_front(points, wanted) == unbeaten


def test_spent_counts_gpu_and_wall_hours():
    cost = spent([(0, 3600), (1800, 5400), (9000, 10800)], gpus=4)
    assert cost.gpu_hours == pytest.approx(10.0) and cost.wall_hours == pytest.approx(2.0)
    assert spent([], 1) == spent([(5, 5)], 1)


@pytest.mark.parametrize("before", [[], [(-9.0, -4.0), (-5.0, -2.0)]])
def test_a_ledger_says_what_all_spans_together_say(before):
    draw, gpus = random.Random(3), 2.0
    for _ in range(50):
        ledger, ended, flying, now = Ledger(before), list(before), [], 0.0
        for _ in range(200):
            now += draw.choice([0.0, 1.0, draw.expovariate(0.1)])
            if flying and draw.random() < 0.5:
                ended.append((flying.pop(draw.randrange(len(flying))), now))
                ledger.end(*ended[-1], flying)
            elif len(flying) < 5:
                flying.append(now)
            cost, oracle = ledger.cost(flying, now, gpus), spent([*ended, *((start, now) for start in flying)], gpus)
            assert cost.gpu_hours == pytest.approx(oracle.gpu_hours) and cost.wall_hours == pytest.approx(
                oracle.wall_hours
            )


def test_rank_correlation_between_rungs():
    rungs = {
        0: {100: 4.0, 200: 1.0},
        1: {100: 3.0, 200: 2.0},
        2: {100: 2.0, 200: 3.0},
        3: {100: 1.0, 200: 4.0},
        4: {100: 9.0},
    }
    final = {0: 1.0, 1: 3.0, 2: 2.0, 3: 4.0}
    first, to_end, second = rung_correlation(rungs, final)
    assert (first["rung"], first["later"], first["trials"]) == (100, 200, 4)
    assert (first["spearman"], first["kendall"]) == pytest.approx((-1.0, -1.0))
    assert (second["rung"], second["later"]) == (200, "end")
    assert (second["spearman"], second["kendall"]) == pytest.approx(
        (1 - 6 * 2 / (4 * 15), 4 / 6)
    )  # one swapped pair of six
    assert to_end["spearman"] == pytest.approx(-second["spearman"])
    short = rung_correlation({0: {100: 1.0}, 1: {100: 2.0}}, {0: 1.0, 1: 2.0})
    assert short == [{"rung": 100, "later": "end", "trials": 2, "spearman": None, "kendall": None}]
    tied = rung_correlation({number: {100: 1.0} for number in range(4)}, {number: float(number) for number in range(4)})
    assert tied[0]["spearman"] is None
