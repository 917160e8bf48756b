import pytest

from tests.helpers.mlflow_store import MLflowStore


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """Shared by the tests of the session (creating a database takes seconds); each takes a study name of its own."""
    return MLflowStore(tmp_path_factory.mktemp("root"))
