"""Paths of a configuration: absolute where it is read, comparable when a study is resumed."""

from __future__ import annotations

import pytest

from tests.helpers.commands import REPOSITORY
from uvar_tune.config.loading import config_from_mapping, read_config
from uvar_tune.config.paths import INPUT_PATHS, same_path
from uvar_tune.errors import ConfigError
from uvar_tune.study_dir import differences

FOLDER = {"data": {"name": "folder", "path": "data/x"}}
PATHS = {
    "data.path": "data/x",
    "tokenizer.path": "data/x",
    "training.init_from": "data/x",
    "evaluation.weights": "data/x",
    "run.root": "data/x",
    "run.scratch": "data/x",
    "run.storage": "journal:data/x",
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A working directory that holds data/x."""
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    (tmp_path / "a" / "data" / "x").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a")
    return tmp_path / "a"


@pytest.mark.parametrize("name", PATHS)
def test_relative_paths_become_absolute(name, project, monkeypatch):
    config = config_from_mapping({}, [f"{name}={PATHS[name]}"])
    assert config.get(name) == PATHS[name].replace("data/x", f"{project}/data/x")
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.setenv("DATA", "/data")
    prefix = PATHS[name].removesuffix("data/x")
    for text, path in (("~/x", "/home/ann/x"), ("$DATA/x", "/data/x"), ("${DATA}/../x", "/x")):
        assert config_from_mapping({}, [f"{name}={prefix}{text}"]).get(name) == prefix + path
    with pytest.raises(ConfigError, match=r"command line: .*\$NOWHERE is not set"):
        config_from_mapping({}, [f"{name}={prefix}$NOWHERE/x"])


def test_storage_urls_keep_what_is_no_file(project):
    def storage(url):
        return config_from_mapping({"run": {"storage": url}}).run.storage

    assert storage("sqlite:///a.db?timeout=9") == f"sqlite:///{project}/a.db?timeout=9"
    for url in (
        "sqlite:////b/a.db",
        "sqlite:///file:a.db?uri=true",
        "sqlite://",
        "postgresql://h/$x",
        "sqlite:///:memory:",
    ):
        assert storage(url) == url


def test_job_takes_only_paths_in_its_copy(project, monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert config_from_mapping(FOLDER).data.path == f"{project}/data/x"
    with pytest.raises(ConfigError, match="data.path 'data/y' is relative.*absolute path"):
        config_from_mapping(FOLDER, ["data.path=data/y"])
    for name in ("run.root", "run.scratch", "run.storage"):
        with pytest.raises(ConfigError, match=f"{name} .* is relative.*temporary copy"):
            config_from_mapping({}, [f"{name}={PATHS[name]}"])


@pytest.mark.parametrize("path", sorted((REPOSITORY / "search_spaces").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_spaces_have_absolute_paths(path, project):
    config = read_config(path)
    assert all(config.get(name) is None or config.get(name).startswith(f"{project}/") for name in INPUT_PATHS)


def test_moved_project_is_the_same_study(project, tmp_path, monkeypatch):
    before = config_from_mapping(FOLDER)
    project.rename(tmp_path / "b")
    monkeypatch.chdir(tmp_path / "b")
    after = config_from_mapping(FOLDER)
    assert before != after and not differences(before, after)
    (tmp_path / "b" / "data" / "y").mkdir()
    [difference] = differences(after, config_from_mapping(FOLDER, ["data.path=data/y"]))
    assert difference.startswith("data.path was")


def test_copies_of_two_jobs_are_one_directory(tmp_path):
    copies = [f"{tmp_path}/runtime_resources/working_dir_files/_ray_pkg_{hash}" for hash in "ab"]
    assert same_path(f"{copies[0]}/data/x", f"{copies[1]}/data/x")
    assert not same_path(f"{copies[0]}/data/x", f"{copies[1]}/data/y")
