"""A storage that many reach and a directory that is somebody's: which trials have their files where."""

from __future__ import annotations

import pytest

from tests.helpers.search_cases import study_config
from uvar_tune.errors import ConfigError
from uvar_tune.search.storage import require_existing_study, verify_directory_owner
from uvar_tune.search.study import Search


@pytest.fixture
def storage(tmp_path):
    return Search(study_config(), f"sqlite:///{tmp_path / 'optuna.db'}").storage


def test_one_storage_and_another_directory_is_refused(tmp_path, storage):
    mine, yours = tmp_path / "mine", tmp_path / "yours"
    mine.mkdir()
    yours.mkdir()
    for _ in range(2):
        verify_directory_owner(storage, "study", mine)
    with pytest.raises(
        ConfigError, match=f"'study' whose files are in .*:{mine}, not in {yours}: .*another --study name"
    ):
        verify_directory_owner(storage, "study", yours)
    verify_directory_owner(storage, "study", mine)


def test_a_directory_that_was_moved_is_the_same(tmp_path, storage):
    (tmp_path / "before").mkdir()
    verify_directory_owner(storage, "study", tmp_path / "before")
    (tmp_path / "before").rename(tmp_path / "after")
    verify_directory_owner(storage, "study", tmp_path / "after")


def test_trials_without_storage_are_not_restarted(tmp_path):
    directory, url = tmp_path / "study", f"journal:{tmp_path / 'study' / 'optuna.journal'}"
    directory.mkdir()
    assert not require_existing_study(url, "study", directory) and not list(directory.iterdir())
    verify_directory_owner(Search(study_config(), url).storage, "study", directory)
    (directory / "trials" / "00000").mkdir(parents=True)
    assert require_existing_study(url, "study", directory)
    (directory / "optuna.journal").unlink()
    for elsewhere in (url, f"sqlite:///{tmp_path / 'other.db'}"):
        with pytest.raises(
            ConfigError, match=f"does not hold study 'study', whose trials are in {directory}: .*UVAR_STORAGE"
        ):
            require_existing_study(elsewhere, "study", directory)
    assert not (directory / "optuna.journal").exists() and not (tmp_path / "other.db").exists()


def test_sqlite_file_uri_is_found(tmp_path):
    url = f"sqlite:///file:{tmp_path / 'optuna.db'}?uri=true"
    Search(study_config(), url)
    assert require_existing_study(url, "study", tmp_path)
