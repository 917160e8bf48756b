"""What a study ends with: success, and the lines below its table."""

from __future__ import annotations

import dataclasses

import pytest

from tests.helpers.search_cases import study_config
from tests.helpers.synthetic_study import study
from uvar_tune.commands.summary import StudyOutcome, summary_lines
from uvar_tune.study_dir import StudyDirectory


@pytest.fixture
def outcome(tmp_path):
    pages = {"html": "report.html", "png": "study.png"}
    return StudyOutcome(study(tmp_path, 6), StudyDirectory(tmp_path, "study"), study_config(), pages=pages)


def test_study_with_its_baseline_succeeds(outcome):
    assert outcome.succeeded and not any("no baseline" in line for line in summary_lines(outcome))


@pytest.mark.parametrize(("state", "kind"), [("FAIL", "crashed"), ("PRUNED", "diverged")])
def test_study_without_its_baseline_is_no_success(outcome, state, kind):
    lost = dataclasses.replace(outcome.results.baseline, state=state, outcome=kind, value=None, scores={})
    trials = tuple(lost if trial.number == lost.number else trial for trial in outcome.results.trials)
    without = dataclasses.replace(outcome, results=dataclasses.replace(outcome.results, trials=trials))
    assert not without.succeeded and f"trial 0 ended as {kind}" in summary_lines(without)[-1]


def test_running_baseline_is_no_loss(outcome):
    running = dataclasses.replace(outcome.results.baseline, state="RUNNING", outcome=None, value=None)
    trials = tuple(running if trial.number == 0 else trial for trial in outcome.results.trials)
    assert dataclasses.replace(outcome, results=dataclasses.replace(outcome.results, trials=trials)).succeeded
