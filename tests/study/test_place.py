"""A storage that many reach and a directory that is somebody's: which trials have their files where."""

from __future__ import annotations

import pytest
from search_cases import study_config

from uvar_tune.errors import ConfigError
from uvar_tune.study.place import require_own_directory
from uvar_tune.study.search import Search


@pytest.fixture
def storage(tmp_path):
    return Search(study_config(), f"sqlite:///{tmp_path / 'optuna.db'}").storage


def test_one_storage_and_another_directory_is_refused(tmp_path, storage):
    mine, yours = tmp_path / "mine", tmp_path / "yours"
    mine.mkdir()
    yours.mkdir()
    for _ in range(2):
        require_own_directory(storage, "study", mine)
    with pytest.raises(ConfigError, match=f"'study' whose files lie in .*:{mine}, not in {yours}: .*another --study name"):
        require_own_directory(storage, "study", yours)
    require_own_directory(storage, "study", mine)


def test_a_directory_that_was_moved_is_the_same(tmp_path, storage):
    (tmp_path / "before").mkdir()
    require_own_directory(storage, "study", tmp_path / "before")
    (tmp_path / "before").rename(tmp_path / "after")
    require_own_directory(storage, "study", tmp_path / "after")
