import pytest
from commands import Doors
from ray_head import running


@pytest.fixture(scope="package")
def ray_cluster(tmp_path_factory):
    with running(tmp_path_factory.mktemp("h")) as cluster:
        yield cluster


@pytest.fixture(scope="package")
def cluster_doors(ray_cluster, tmp_path_factory):
    """Doors that join the cluster, where `doors` start a Ray of their own."""
    return Doors(tmp_path_factory.mktemp("cwd"), **ray_cluster.joining)
