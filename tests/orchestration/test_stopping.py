"""Early stopping on a real cluster: what is stopped is gone, and the next trial starts."""

from __future__ import annotations

import json
import re
import time

import pytest
import yaml
from commands import TINY

pytestmark = pytest.mark.ray
TRIALS, RUNG = 6, 6400


@pytest.fixture(scope="module")
def stopped_study(ray_cluster, root, tmp_path_factory):
    """(printed text, directory) of a study in which every trial but the baseline learns nothing."""
    space = {"objective.lambda_1": TINY["space"]["objective.lambda_1"],
             "training.learning_rate": {"role": "nuisance", "type": "float", "low": 1e-9, "high": 1e-8, "log": True}}
    study = {**TINY["study"], "name": "stopped", "trials": TRIALS, "startup_trials": TRIALS, "pruner": "successive_halving",
             "rungs": [RUNG], "rung_samples": 100}
    tree = {**TINY, "study": study, "model": {**TINY["model"], "width": 64},
            "training": {**TINY["training"], "images": 4 * RUNG, "learning_rate": 4e-3}, "space": space,
            "run": {"root": str(root), "max_concurrent": 1}}
    path = tmp_path_factory.mktemp("stopped") / "space.yaml"
    path.write_text(yaml.safe_dump(tree))
    done = ray_cluster.submit("python", "-m", "uvar_tune.sweep", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, root / "stopped"


def test_five_stops_in_a_row(stopped_study):
    text, directory = stopped_study
    assert [int(number) for number in re.findall(rf"trial (\d): stopped \(after {RUNG:,} images", text)] == list(range(1, TRIALS))
    assert "trial 0: fid" in text and "1 complete" in text
    for number in range(1, TRIALS):
        lines = (directory / "trials" / f"{number:05d}" / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        rungs = [record for record in records if record["kind"] == "metrics" and "rung/fid" in record["values"]]
        assert [record["images"] for record in rungs] == [RUNG]
        assert max(record["images"] for record in records if "images" in record) < 4 * RUNG


def test_nothing_is_left_of_stopped_trials(stopped_study, ray_cluster):
    """The cluster lives on: no placement group holds its CPUs, no actor of Train its memory."""
    deadline = time.monotonic() + 60  # of the trial that was stopped last, as the study ended
    while (left := left_over(ray_cluster)) and time.monotonic() < deadline:
        time.sleep(1)
    assert not left


def left_over(ray_cluster) -> list[str]:
    groups = listed(ray_cluster, "placement-groups")
    assert len(groups) >= TRIALS
    actors = [actor["class_name"] for actor in listed(ray_cluster, "actors") if actor["state"] != "DEAD"]
    return [*(group["state"] for group in groups if group["state"] != "REMOVED"), *(name for name in actors if "Train" in name)]


def listed(ray_cluster, what: str) -> list[dict]:
    """What Ray's State API knows of them, ended ones included."""
    told = ray_cluster.ray("list", what, "--address", ray_cluster.address, "--format", "json", "--limit", "1000")
    return json.loads(told.stdout)
