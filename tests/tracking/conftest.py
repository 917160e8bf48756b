import pytest

from tests.helpers.mlflow_place import Place


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """Shared by the tests of the session (a database takes seconds to make); each takes a study name of its own."""
    return Place(tmp_path_factory.mktemp("root"))


@pytest.fixture
def said(log_lines):
    return log_lines
