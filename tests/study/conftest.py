"""The storages that the search is tested on: a journal file, SQLite, and a PostgreSQL of the tests' own."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", params=["journal", "sqlite", "postgresql"])
def storage_url(request, tmp_path_factory) -> str:
    """One storage of each kind for the session; tests tell their studies apart by name."""
    if request.param == "postgresql":
        return request.getfixturevalue("postgresql")
    path = tmp_path_factory.mktemp("storage") / "studies"
    return f"journal:{path}" if request.param == "journal" else f"sqlite:///{path}"


@pytest.fixture
def journal(tmp_path) -> str:
    return f"journal:{tmp_path / 'optuna.journal'}"
