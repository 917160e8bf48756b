"""The sampler `grid`: every combination once, paired with the baseline, and what it cannot be asked for."""

from __future__ import annotations

import itertools

import pytest

from tests.helpers.search_cases import details, run_to_end, scored, study_config
from uvar_tune.config.loading import validate
from uvar_tune.errors import ConfigError
from uvar_tune.search.study import Search

ARM = {"role": "scientific", "type": "categorical"}
REFERENCES, DISCREPANCIES, DEPTHS = (
    ["normal", "uniform", "dataset", "semantic"],
    ["wasserstein", "squared", "kl"],
    [1, 2],
)
SPACE = {
    "loss.lambda_1": {**ARM, "role": "fixed", "choices": [0.05]},
    "loss.reference": {**ARM, "choices": REFERENCES},
    "loss.discrepancy": {**ARM, "choices": DISCREPANCIES},
    "model.depth": {**ARM, "role": "nuisance", "choices": DEPTHS},
    "inference.cfg_scale": {"role": "inference", "type": "float", "low": 0, "high": 4},
}
NAMES = ("loss.reference", "loss.discrepancy", "model.depth")
EVERY = list(itertools.product(REFERENCES, DISCREPANCIES, DEPTHS))


def grid_config(name="grid", **study):
    return study_config(name, space=SPACE, **{"sampler": "grid", "trials": 1 + len(EVERY), **study})


def met(proposals):
    return [tuple(proposal.values[name] for name in NAMES) for proposal in proposals if proposal.kind == "search"]


@pytest.mark.parametrize("startup_trials", [1, 8])
def test_every_combination_runs_once_in_order(journal, startup_trials):
    asked = run_to_end(Search(grid_config(startup_trials=startup_trials), journal))
    assert met(asked) == EVERY
    assert [proposal.kind for proposal in asked] == ["baseline"] + ["search"] * len(EVERY)
    assert asked[0].values["loss.lambda_1"] == 0.0 and {p.values["loss.lambda_1"] for p in asked[1:]} == {0.05}


def test_interrupted_grid_is_completed(journal):
    """Each trial is asked by a new driver; the third dies with its trial, which is asked again; the total grows midway."""
    asked = []
    for turn in range(30):
        search = Search(grid_config(trials=6 if turn < 9 else 1 + len(EVERY)), journal)
        proposal = search.ask()
        if turn == 3:
            assert met([proposal]) == [EVERY[2]]
            continue
        if proposal is not None:
            search.complete(proposal.number, scored(5.0, details(fid=5.0)))
            asked.append(proposal)
    assert met(asked) == EVERY and [p.attempt for p in asked[:5]] == [1, 1, 1, 2, 1]


def test_grid_trials_are_paired_by_seed(journal):
    first = run_to_end(Search(grid_config("a", trials=4), journal))
    assert len({tuple(sorted(proposal.seeds.items())) for proposal in first}) == 1
    second = run_to_end(Search(grid_config("b", trials=4, seed=1), journal))
    assert met(second) == met(first)
    assert all(second[0].seeds[purpose] != seed for purpose, seed in first[0].seeds.items())
    random = run_to_end(Search(grid_config("c", trials=4, sampler="random"), journal))
    assert len({proposal.seeds["training"] for proposal in random}) == 4
    assert random[0].seeds == first[0].seeds


def test_sub_search_of_a_grid_ends(journal):
    """The baseline's tuning searches the nuisance parameters alone, with as many trials as the study has."""
    config = grid_config()
    config = config.model_copy(
        update={"space": {name: config.space[name] for name in ("model.depth", "inference.cfg_scale")}}
    )
    search = Search(config, journal, sub_study="baseline")
    asked = run_to_end(search, lambda proposal: 5.0)
    assert [proposal.values["model.depth"] for proposal in asked[1:]] == DEPTHS
    assert search.done() and Search(config, journal, sub_study="baseline").done()


RANGE = {"role": "scientific", "type": "float", "low": 0.01, "high": 0.3, "log": True}


@pytest.mark.parametrize(
    "study, changes, said",
    [
        ({}, {"loss.lambda_1": RANGE}, "space.loss.lambda_1: study.sampler 'grid' tries every combination of choices"),
        (
            {},
            {"model.depth": {"role": "nuisance", "type": "int", "low": 1, "high": 2}},
            "this is a range; give it type categorical",
        ),
        ({}, {"model.depth": {**SPACE["model.depth"], "when": {"loss.reference": "normal"}}}, "does not exist in some"),
        ({"trials": 26}, {}, "study.trials 26: the baseline and the grid are 25 trials"),
    ],
)
def test_what_is_no_grid_is_refused(study, changes, said):
    tree = {"study": {"sampler": "grid", "trials": 25, **study}, "space": {**SPACE, **changes}}
    with pytest.raises(ConfigError) as caught:
        validate(tree, "grid.yaml")
    assert said in caught.value.message and caught.value.nearest
    validate({**tree, "study": {**tree["study"], "sampler": "qmc"}}, "grid.yaml")
