"""What tests of whole commands share: one root whose caches all studies use, a way to run cli, a small space."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.helpers import postgresql_server
from tests.helpers.commands import TINY, CommandLine
from tests.helpers.log_lines import captured_log
from tests.helpers.ray_head import running


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
    """One run.root for all studies of the session: tokenizer, tokens and classifier are made once."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Path:
    """A home directory of the tests' own, so that Ray's token is not the user's."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def cli(tmp_path_factory, home) -> CommandLine:
    return CommandLine(tmp_path_factory.mktemp("cwd"), HOME=str(home))


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory):
    with running(tmp_path_factory.mktemp("h")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def cluster_cli(ray_cluster, tmp_path_factory):
    """CommandLine that join the cluster, where `cli` start a Ray of their own."""
    return CommandLine(tmp_path_factory.mktemp("cwd"), **ray_cluster.joining)


@pytest.fixture(scope="session")
def postgresql():
    """The URL of a private cluster, made for the session."""
    with postgresql_server.running() as url:
        yield url


@pytest.fixture
def log_lines():
    """The lines that `uvar_tune` logs during the test, as a list that grows."""
    with captured_log() as lines:
        yield lines


@pytest.fixture
def space(tmp_path, root):
    """Writes the small space with changes by section; the path of its file."""

    def write(**sections) -> Path:
        tree = {key: {**value} for key, value in TINY.items()}
        tree["run"]["root"] = str(root)
        for section, values in sections.items():
            tree[section] = {**tree.get(section, {}), **values}
        path = tmp_path / "space.yaml"
        path.write_text(yaml.safe_dump(tree))
        return path

    return write


@pytest.fixture(scope="session", params=["journal", "sqlite", "postgresql"])
def storage_url(request, tmp_path_factory) -> str:
    """One storage of each kind for the session; the studies of the tests differ by name."""
    if request.param == "postgresql":
        return request.getfixturevalue("postgresql")
    path = tmp_path_factory.mktemp("storage") / "studies"
    return f"journal:{path}" if request.param == "journal" else f"sqlite:///{path}"


@pytest.fixture
def journal(tmp_path) -> str:
    return f"journal:{tmp_path / 'optuna.journal'}"
