"""What each sampler proposes: the Sobol start, what it learns from scores, misses and bounds, alone and with several objectives."""

from __future__ import annotations

import itertools
import math

import pytest

from tests.helpers.search_cases import NARROW, SPACE, bowl, details, ended, run_to_end, scored, study_config
from uvar_tune.config.space import searched_entries
from uvar_tune.search.samplers import sobol_point
from uvar_tune.search.study import Search

LAMBDA_1 = "loss.lambda_1"


def halves_of(proposals, name=LAMBDA_1) -> int:
    """How many are in the upper half of the (log) range."""
    entry = NARROW[name]
    return sum(proposal.values[name] > math.sqrt(entry["low"] * entry["high"]) for proposal in proposals)


@pytest.mark.parametrize("count", [4, 8])
def test_the_sobol_start_fills_the_space_evenly(count):
    """The first 2^m points of a scrambled Sobol sequence: one in each of 2^m slices of every parameter."""
    entries = searched_entries(study_config(space=NARROW))
    points = [sobol_point(entries, index, seed=5) for index in range(count)]
    for name, entry in entries.items():
        slices = {int(count * math.log(point[name] / entry.low) / math.log(entry.high / entry.low)) for point in points}
        assert slices == set(range(count))
    assert points != [sobol_point(entries, index, seed=6) for index in range(count)]


def test_sobol_points_are_in_the_space():
    entries = searched_entries(study_config())
    for index in range(64):
        for name, value in sobol_point(entries, index, seed=1).items():
            assert entries[name].holds(value), (name, value)
    assert {sobol_point(entries, index, seed=1)["model.depth"] for index in range(64)} == {1, 2, 3, 4}


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "qmc", "gp"])
def test_all_samplers_start_at_the_same_sobol_points(sampler, tmp_path):
    config = study_config(space=NARROW, sampler=sampler, startup_trials=3, trials=4, seed=7)
    first = [proposal.values for proposal in run_to_end(Search(config, f"journal:{tmp_path / sampler}"))[1:]]
    reference = run_to_end(Search(config.with_values({"study.sampler": "qmc"}), f"journal:{tmp_path / 'qmc-again'}"))[
        1:
    ]
    assert first == [proposal.values for proposal in reference]


@pytest.mark.parametrize("seed", [0, 1])
def test_tpe_stays_out_of_a_half_that_diverges(journal, seed):
    search = Search(study_config(space=NARROW, sampler="tpe", startup_trials=8, trials=61, seed=seed), journal)
    asked = []
    while (proposal := search.ask()) is not None:
        if proposal.number and halves_of([proposal]):
            search.prune(proposal.number, ended("diverged"))
        else:
            search.complete(proposal.number, scored(5 + abs(proposal.values["loss.lambda_2"] - 0.1), details()))
        asked.append(proposal)
    assert 2 <= halves_of(asked[1:9]) <= 6  # the start looked there
    assert halves_of(asked[-20:]) <= 4


@pytest.mark.parametrize("sampler, trials", [("gp", 15), ("nsga2", 45), ("tpe", 45)])
def test_sampler_learns_despite_the_baseline(journal, sampler, trials):
    """The best λ1 is 0.3, in the middle of the log range; a third of a uniform draw lies within a factor of 3 of it.

    The baseline, completed without parameters, must not hide the common parameters of the other trials.
    """
    search = Search(study_config(space=NARROW, sampler=sampler, startup_trials=8, trials=trials), journal)
    asked = run_to_end(search, lambda p: 9.0 if p.number == 0 else abs(math.log(p.values[LAMBDA_1] / 0.3)))
    late = asked[-6:] if sampler == "gp" else asked[-15:]
    assert sum(0.1 < proposal.values[LAMBDA_1] < 0.9 for proposal in late) >= len(late) / 2


def test_gp_counts_a_trial_that_ended_early_as_bad(journal):
    search = Search(study_config(space=NARROW, sampler="gp", startup_trials=8, trials=15), journal)
    asked = []
    while (proposal := search.ask()) is not None:
        asked.append(proposal)
        if proposal.number and halves_of([proposal]):
            search.prune(proposal.number, ended("diverged"))
        else:
            search.complete(proposal.number, scored(5.0 + 0.1 * proposal.number % 0.3, details()))
    assert halves_of(asked[-6:]) <= 2


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random", "qmc", "gp"])
def test_several_objectives_and_a_conditional_space(journal, sampler):
    config = study_config(
        space=SPACE,
        sampler=sampler,
        startup_trials=4,
        trials=9 if sampler == "gp" else 14,
        further_metrics=["is"],
        constraints={"nll_token": {"max": 2.0}},
    )
    search = Search(config, journal)
    while (proposal := search.ask()) is not None:
        if proposal.number == 5:
            search.prune(5, ended("out_of_memory"))
            continue
        score = bowl(proposal)
        search.complete(proposal.number, scored(score, details(nll_token=proposal.number / 5, **{"is": 10 - score})))
    assert search.done()
    stored = search.study.get_trials(deepcopy=False)
    assert all(len(trial.values) == 2 for trial in stored if trial.number != 5)
    if sampler != "nsga2":  # whose children may be copies
        assert len({trial.params[LAMBDA_1] for trial in stored[1:]}) == len(stored) - 1


def test_first_points_cover_all_choices(journal):
    """What the ablation rests on: 2^d Sobol points meet each of the 2^d combinations once."""
    arm = {"role": "scientific", "type": "categorical"}
    space = {
        LAMBDA_1: {**arm, "choices": [0.0, 1.0]},
        "loss.lambda_2": {**arm, "choices": [0.0, 0.1]},
        "model.depth": {**arm, "choices": [1, 2]},
    }
    for seed in range(5):
        asked = run_to_end(
            Search(study_config(f"arms-{seed}", space=space, sampler="qmc", trials=9, seed=seed), journal)
        )
        met = [tuple(proposal.values.values()) for proposal in asked[1:]]
        assert sorted(met) == sorted(itertools.product([0.0, 1.0], [0.0, 0.1], [1, 2]))
