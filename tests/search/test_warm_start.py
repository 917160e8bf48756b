"""Warm start: completed trials of another study inform the sampler, once, and nothing else."""

from __future__ import annotations

import shutil

import pytest

from tests.helpers.search_cases import NARROW, SPACE, run_to_end, study_config
from uvar_tune.errors import ConfigError
from uvar_tune.search.load import load_results
from uvar_tune.search.study import Search
from uvar_tune.search.warm_start import source_trials
from uvar_tune.study_dir import StudyDirectory


def begin(root, name, **settings) -> Search:
    config = study_config(name, run={"root": str(root)}, **{"space": NARROW, "trials": 3, **settings})
    files = StudyDirectory(root, name)
    files.create()
    files.create_or_verify(config)
    return Search(config, files.storage_url(config))


@pytest.fixture
def root(tmp_path):
    run_to_end(begin(tmp_path, "source", trials=12, seed=3))
    return tmp_path


def proposals(search) -> list[dict]:
    return [proposal.values for proposal in run_to_end(search)]


def test_sampler_learns_from_the_source(root):
    uninformed = proposals(begin(root, "uninformed", trials=6))
    informed = proposals(begin(root, "informed", trials=6, warm_start="source"))
    assert informed[0] == uninformed[0] and informed[1:] != uninformed[1:]
    distance = [sum(abs(values["loss.lambda_1"] - 0.3) for values in found[1:]) for found in (informed, uninformed)]
    assert distance[0] < distance[1]  # the source's best is at 0.3, and random start-up trials are not needed


def test_source_is_copied_once(root):
    settings = {"trials": 6, "warm_start": "source"}
    expected = proposals(begin(root, "first", **settings))
    search = begin(root, "second", **settings)
    before = [search.ask().values]
    search.ask()  # proposed, then the driver dies
    shutil.rmtree(root / "source")
    again = Search(search.config, StudyDirectory(root, "second").storage_url(search.config))
    assert before == expected[:1] and len(proposals(again)) == 6


def test_copied_trials_are_not_ranked(root):
    search = begin(root, "informed", warm_start="source")
    run_to_end(search)
    assert len(load_results(search.config, StudyDirectory(root, "informed")).trials) == 3


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"warm_start": "sorce"}, "did you mean 'source'"),
        ({"warm_start": "informed"}, "is this study"),
        ({"warm_start": "source", "metric": "is"}, "has the metrics fid"),
        ({"warm_start": "source", "space": {"loss.lambda_1": SPACE["loss.lambda_1"]}}, "searches loss.lambda_2"),
        ({"warm_start": "source", "terms": {"lambda_unit": "share"}}, "lambda_unit 'raw', this one 'share'"),
        ({"warm_start": "journal:/nowhere"}, "names no study: give URL#NAME"),
    ],
)
def test_unfit_source_is_refused(root, settings, message):
    if "terms" in settings:
        settings["space"] = {name: {**NARROW[name], "low": 0.01, "high": 0.3} for name in NARROW}
    with pytest.raises(ConfigError, match=message):
        source_trials(begin(root, "informed", **settings).config)
