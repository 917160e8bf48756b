import dataclasses
import math

import pytest

from tests.helpers.synthetic_study import study


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return study(tmp_path_factory.mktemp("study"), 30)


def with_values(results, values, **changes):
    """The study with these values, None for a trial without a score."""
    trials = tuple(
        dataclasses.replace(trial, value=value, state="FAIL" if value is None else "COMPLETE")
        for trial, value in zip(results.trials, values, strict=False)
    )
    return dataclasses.replace(results, trials=trials, **changes)


def test_ranked_sorts_in_either_direction(results):
    values = [4.0, None, 2.0, 3.0, 2.0]
    assert [trial.number for trial in with_values(results, values).ranked()] == [2, 4, 3, 0]
    assert [trial.number for trial in with_values(results, values, direction="maximize").ranked()] == [0, 3, 2, 4]


def test_nan_and_inf_are_not_ranked(results):
    assert [trial.number for trial in with_values(results, [math.nan, 1.0, math.inf]).ranked()] == [1]


def test_no_best_without_a_score(results):
    nothing = with_values(results, [None, None])
    assert nothing.best is None and nothing.ranked() == [] and nothing.baseline.number == 0


def test_ranked_returns_a_copy(results):
    best = results.best
    results.ranked().clear()
    assert results.best is best and results.ranked()[0] is best
