"""A trial that differs from the baseline in another scientific parameter is compared with cross-entropy at its value."""

from __future__ import annotations

import functools

import pytest

from tests.helpers.search_cases import SPACE, details, scored, study_config
from uvar_tune.analysis.confirmation import (
    BASELINE,
    SECOND_ALONE,
    SEMANTIC_ALONE,
    confirm_arms,
    control_arms,
    stopped_arms,
)
from uvar_tune.search.load import load_results
from uvar_tune.search.replicates import Replicates, StopRule
from uvar_tune.search.study import Search
from uvar_tune.study_dir import StudyDirectory

DEPTH = {"role": "scientific", "type": "categorical", "choices": [2, 4], "baseline": 2}
DEEP = "cross-entropy, depth 4"
EFFECT = {BASELINE: 0.0, DEEP: -2.0, "label smoothing": 0.0}  # depth alone lowers the score, the terms do nothing


@pytest.fixture
def files(tmp_path):
    return StudyDirectory(tmp_path, "study")


@pytest.fixture
def searched(files):
    """(config, results) of a study whose best trial is deeper than the baseline."""
    space = {**{name: SPACE[name] for name in ("loss.lambda_1", "loss.lambda_2")}, "model.depth": DEPTH}
    queue = [{"loss.lambda_1": 1.0, "loss.lambda_2": 0.1, "model.depth": depth} for depth in (4, 2)]
    config = study_config(space=space, trials=3, queue=queue, confirm_top=2)
    files.create()
    files.create_or_verify(config)
    search = Search(config, files.storage_url(config))
    for value in (5.0, 3.0, 4.9):
        search.complete(search.ask().number, scored(value, details(fid=value)))
    return config, load_results(config, files)


def test_deeper_trial_has_a_control_of_its_depth(searched):
    config, results = searched
    arms = confirm_arms(config, results, {})
    assert arms[DEEP] == {**arms[BASELINE], "model.depth": 4}
    of_the_best = dict.fromkeys(("trial 1", SECOND_ALONE, SEMANTIC_ALONE), DEEP)
    assert control_arms(config, arms) == {**of_the_best, "trial 2": BASELINE, "label smoothing": BASELINE}


def test_effect_of_the_depth_is_not_credited_to_the_terms(searched, files):
    config, results = searched
    arms = confirm_arms(config, results, {})
    rule = StopRule(functools.partial(stopped_arms, config), control_arms(config, arms))
    work = Replicates(config, files.storage_url(config), "confirm", arms, 12, stop_rule=rule)
    while (proposal := work.ask()) is not None:
        index = work.storage.get_trial_user_attrs(work._trial_id(proposal.number))["replicate"]
        value = 5 + EFFECT.get(proposal.kind, -2.0 if arms[proposal.kind].get("model.depth") == 4 else 0.0)
        value += 0.1 * ((index * 7 + len(proposal.kind) * 3) % 5) + 0.01 * index
        work.complete(proposal.number, scored(value, {**details(fid=value), "protocol": {}}))
    assert work.done()
    found = load_results(config, files)
    one = found.verdicts["trial 1"]
    assert (one["control"], one["verdict"]) == (DEEP, "not distinguishable") and abs(one["difference"]) < 0.5
    assert one["baseline"] == pytest.approx(found.confirmed[DEEP]["mean"], abs=0.2) and DEEP not in found.verdicts
    assert found.factorial["none"] == DEEP
    counts = {arm: len(row["values"]) for arm, row in found.confirmed.items()}
    assert counts[DEEP] == max(counts[arm] for arm in ("trial 1", SECOND_ALONE, SEMANTIC_ALONE))
