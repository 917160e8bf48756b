import pytest
from ray_head import Cluster


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory):
    running = Cluster(tmp_path_factory.mktemp("h"))
    try:
        running.wait()
        yield running
    finally:
        running.close()
