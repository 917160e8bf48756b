"""A study's directory: what makes it another study, who may run it, where it lies."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from tests.helpers.search_cases import SPACE, study_config
from uvar_tune.errors import ConfigError
from uvar_tune.study_dir import StudyDirectory, resolve_root


@pytest.fixture
def files(tmp_path) -> StudyDirectory:
    files = StudyDirectory(tmp_path / "runs", "study")
    files.create()
    return files


def test_same_question_resumes_and_may_be_extended(files):
    config = study_config(trials=4, max_wall_time=1.0)
    files.create_or_verify(config)
    for changes in ({}, {"study.trials": 9}, {"study.max_wall_time": 5.0}, {"study.question": "?"}, {"run.workers": 2}):
        files.create_or_verify(config.with_values(changes))
        assert files.load_config() == config.with_values(changes)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"study.seed": 2}, "study.seed was 0, is 2"),
        ({"loss.reference": "uniform"}, "loss.reference was 'normal', is 'uniform'"),
        ({"study.pruner": "median", "study.rungs": [6400]}, "study.pruner was 'none', is 'median'"),
    ],
)
def test_another_question_is_refused_with_difference(files, changes, message):
    files.create_or_verify(study_config())
    with pytest.raises(ConfigError, match=message):
        files.create_or_verify(study_config().with_values(changes))


def test_another_space_is_refused_with_the_difference(files):
    files.create_or_verify(study_config())
    narrower = {**SPACE, "loss.lambda_1": {**SPACE["loss.lambda_1"], "high": 5}}
    with pytest.raises(ConfigError, match=r"space.loss.lambda_1.high was 6.0, is 5.0"):
        files.create_or_verify(study_config(space=narrower))
    assert files.load_config() == study_config()


def _hold(root: Path, ready, done) -> None:
    with StudyDirectory(root, "study").lock():
        ready.set()
        done.wait(60)


def test_a_second_sweep_on_a_study_is_refused(files):
    spawn = multiprocessing.get_context("fork")
    ready, done = spawn.Event(), spawn.Event()
    other = spawn.Process(target=_hold, args=(files.root, ready, done))
    other.start()
    try:
        assert ready.wait(60)
        with pytest.raises(ConfigError, match=f"is being run by process {other.pid}"), files.lock():
            pass
    finally:
        done.set()
        other.join()
    with files.lock():
        assert (files.directory / ".lock").read_text().startswith("process ")


def test_a_study_that_is_not_there(files):
    files.create_or_verify(study_config())
    with pytest.raises(ConfigError, match="no study 'stduy'.*did you mean 'study'"):
        StudyDirectory(files.root, "stduy").load_config()


def test_where_studies_lie(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert resolve_root(None) == tmp_path / "runs" and resolve_root("/there") == Path("/there")
    with pytest.raises(ConfigError, match="is not a path"):
        resolve_root("s3://bucket/runs")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert resolve_root(None) == Path.home() / "uvar_tune_runs"  # the job's own directory is a temporary copy
    with pytest.raises(ConfigError, match="is relative"):
        resolve_root("runs")


def test_a_root_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        StudyDirectory(tmp_path / "file", "study").create()
