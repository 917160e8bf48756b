"""What tests of whole commands share: one root whose caches all studies use, a way to run doors, a small space."""

from __future__ import annotations

from pathlib import Path

import postgresql_server
import pytest
import yaml
from commands import TINY, Doors


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
    """One run.root for all studies of the session: tokenizer, tokens and classifier are made once."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Path:
    """A home directory of the tests' own, so that Ray's token is not the user's."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def doors(tmp_path_factory, home) -> Doors:
    return Doors(tmp_path_factory.mktemp("cwd"), HOME=str(home))


@pytest.fixture(scope="session")
def postgresql():
    """The URL of a private cluster, made for the session."""
    with postgresql_server.running() as url:
        yield url


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
