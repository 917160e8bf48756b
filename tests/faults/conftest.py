"""The same study, left alone once and begun anew for each fault."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml
from commands import TINY, end_session
from faulty_study import RUN, STUDY, TRAINING, values


@pytest.fixture(scope="module")
def undisturbed(root, doors, tmp_path_factory):
    """Values of the same study, left alone."""
    tree = {**TINY, "study": {**TINY["study"], **STUDY, "name": "calm"}, "training": {**TINY["training"], **TRAINING},
            "run": {**RUN, "root": str(root)}}
    path = tmp_path_factory.mktemp("calm") / "space.yaml"
    path.write_text(yaml.safe_dump(tree))
    done = doors("sweep", path)
    assert done.returncode == 0, done.stdout + done.stderr
    return values(root, "calm")


@pytest.fixture
def begin(root, doors, space):
    """Starts the study under another name; ends its session afterwards."""
    begun: list[subprocess.Popen] = []

    def start(name: str, variables: dict[str, str] | None = None, **run) -> tuple[subprocess.Popen, Path, Path]:
        path = space(study={**STUDY, "name": name}, training=TRAINING, run={**RUN, **run})
        begun.append(doors.start("sweep", path, **(variables or {})))
        return begun[-1], path, root / name

    yield start
    for process in begun:
        end_session(process)
