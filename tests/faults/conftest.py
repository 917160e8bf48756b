"""The same study, once undisturbed and once per fault; a table at the end shows what each fault cost."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from tests.helpers.commands import TINY, end_session
from tests.helpers.faulty_study import RUN, STUDY, TRAINING, alone, interruption, values

_COSTS = pytest.StashKey[list[tuple[str, str, float]]]()


@pytest.fixture(scope="session")
def undisturbed(root):
    """Values of the same study, left alone."""
    return alone(root, "calm")


@pytest.fixture(scope="session")
def undisturbed_pair(root, cli, undisturbed, tmp_path_factory):
    """Values of the same study with two ranks a trial, left alone."""
    tree = {
        **TINY,
        "study": {**TINY["study"], **STUDY, "name": "calm-pair"},
        "training": {**TINY["training"], **TRAINING},
        "run": {**RUN, "root": str(root), "workers": 2},
    }
    path = tmp_path_factory.mktemp("calm-pair") / "space.yaml"
    path.write_text(yaml.safe_dump(tree))
    done = cli("sweep", path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = values(root, "calm-pair")
    assert found == pytest.approx(undisturbed, rel=0.2)  # two ranks sum in another order
    return found


@pytest.fixture
def begin(root, cli, space):
    """Starts the study under another name; ends its session afterwards."""
    begun: list[subprocess.Popen] = []

    def start(name: str, variables: dict[str, str] | None = None, **run) -> tuple[subprocess.Popen, Path, Path]:
        path = space(study={**STUDY, "name": name}, training=TRAINING, run={"root": str(root), **RUN, **run})
        begun.append(cli.start("sweep", path, **(variables or {})))
        return begun[-1], path, Path(run.get("root", root)) / name

    yield start
    for process in begun:
        end_session(process)


@pytest.fixture
def cost(request, record_property):
    """Notes what a fault cost, for the table at the end; ``began`` (s since 1970) is when it struck. No more than one
    checkpoint interval (or ``intervals``) may have been computed again."""

    def note(
        fault: str,
        directory: Path,
        number: int,
        began: float,
        comes: str = "the same trial goes on by itself",
        intervals: int = 1,
    ) -> None:
        again, seconds = interruption(directory, number, began)
        assert 0 <= again <= intervals * RUN["checkpoint_images"], f"{again} images were computed again"
        record_property("seconds_lost", round(seconds, 1))
        request.config.stash.setdefault(_COSTS, []).append((fault, f"{comes}; {again} images again", seconds))

    return note


def pytest_terminal_summary(terminalreporter, config):
    costs = config.stash.get(_COSTS, [])
    if costs:
        terminalreporter.section("what each fault cost: seconds from it to the first step beyond what had been reached")
    for fault, comes, seconds in costs:
        terminalreporter.write_line(f"{fault:<38} {comes:<62} {seconds:6.1f} s")
