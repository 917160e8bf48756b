import pytest
from ray_head import running


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory):
    with running(tmp_path_factory.mktemp("h")) as cluster:
        yield cluster
