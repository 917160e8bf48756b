"""The README's cluster section, done literally (token authentication, `ray start --head`, `ray job submit`), for a study with early
stopping: what is stopped is gone while the study goes on, and the next trial starts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import optuna
import psutil
import pytest
import yaml

from tests.helpers.commands import TINY

pytestmark = pytest.mark.ray
RUNG = 6400
# Halving by this lets only the best of so many go on from a rung: the baseline, which alone learns something.
FACTOR = {3: 3, 20: 24}
WATCH = """
import json, sys, time
from ray.util.state import list_actors, list_placement_groups
asked = {"address": sys.argv[1], "limit": 10_000, "timeout": 30, "raise_on_missing_output": False}
while True:
    now = time.time()
    alive = {group.placement_group_id: "placement group" for group in list_placement_groups(**asked) if group.state != "REMOVED"}
    alive |= {actor.actor_id: actor.class_name for actor in list_actors(**asked) if actor.state != "DEAD"}
    print(json.dumps([now, time.time(), alive]), flush=True)
    time.sleep(0.5)
"""


@pytest.fixture(scope="module", params=[3, pytest.param(20, marks=pytest.mark.slow)])
def stopped_study(request, ray_cluster, root, tmp_path_factory):
    """(how many are to stop, printed text, directory, looks at the cluster meanwhile): all but the baseline learn nothing.

    Nothing says where its files belong, so that they are in the default place, below the home directory.
    """
    stops, name = request.param, f"stopped-{request.param}"
    space = {
        "loss.lambda_1": TINY["space"]["loss.lambda_1"],
        "training.learning_rate": {"role": "nuisance", "type": "float", "low": 1e-9, "high": 1e-8, "log": True},
    }
    study = {
        **TINY["study"],
        "name": name,
        "trials": stops + 1,
        "startup_trials": stops + 1,
        "pruner": "successive_halving",
        "rungs": [RUNG],
        "rung_samples": 100,
    }
    tree = {
        **TINY,
        "study": study,
        "model": {**TINY["model"], "width": 64},
        "training": {**TINY["training"], "images": FACTOR[stops] * RUNG, "learning_rate": 4e-3},
        "space": space,
        "run": {"max_concurrent": 1},
    }
    runs = Path(ray_cluster.environment["HOME"]) / "uvar_tune_runs"
    runs.mkdir(exist_ok=True)
    (root / "cache").mkdir(exist_ok=True)
    if not (runs / "cache").exists():
        (runs / "cache").symlink_to(root / "cache")  # made once for all tests
    folder = tmp_path_factory.mktemp(name)
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump(tree))
    with (folder / "looks").open("w") as looks:
        watcher = subprocess.Popen(
            [sys.executable, "-c", WATCH, ray_cluster.address], env=ray_cluster.environment, stdout=looks
        )
        try:
            done = ray_cluster.submit("python", "-m", "uvar_tune.sweep", str(path), timeout=240 * (stops + 1))
            assert watcher.poll() is None
        finally:
            watcher.kill()
            watcher.wait()
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (folder / "looks").read_text().splitlines(keepends=True)
    return stops, done.stdout, runs / name, [json.loads(line) for line in lines if line.endswith("\n")]


def test_stops_in_a_row(stopped_study):
    stops, text, directory, _ = stopped_study
    stopped = [int(number) for number in re.findall(rf"trial (\d+): stopped \(after {RUNG:,} images", text)]
    assert stopped == list(range(1, stops + 1))
    assert "trial 0: fid" in text and "1 complete" in text
    for number in stopped:
        lines = (directory / "trials" / f"{number:05d}" / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        rungs = [record for record in records if record["kind"] == "metrics" and "rung/fid" in record["values"]]
        assert [record["images"] for record in rungs] == [RUNG]
        assert max(record["images"] for record in records if "images" in record) < FACTOR[stops] * RUNG


def test_the_study_outlives_its_job(stopped_study):
    _, text, directory, _ = stopped_study
    assert "succeeded" in text and str(directory) in text
    assert list((directory / "export").glob("*.yaml")) and (directory / "report" / "report.html").exists()


def test_stopped_trial_frees_its_resources(stopped_study, capsys):
    """Its workers, controller and placement group are gone before the next trial stops; how soon is said, not asserted."""
    stops, _, directory, looks = stopped_study
    ends = [trial.user_attrs["attempts"][-1]["ended"] for trial in stored(directory)[1:]]
    took = []
    for number, ended in enumerate(ends[:-1], start=1):
        held = {
            one: what for _, came, alive in looks if came <= ended for one, what in alive.items() if of_a_trial(what)
        }
        assert {"placement group", "RayTrainWorker", "TrainController"} <= set(held.values())
        after = [(came, alive) for began, came, alive in looks if began >= ended]
        freed = next((came for came, alive in after if not held.keys() & alive.keys()), None)
        assert freed is not None and freed < ends[number], f"trial {number} still holds {held}"
        took.append(freed - ended)
    with capsys.disabled():
        print(
            f"\n{stops} stops in a row: what a trial held was gone {max(took):.1f} s after the stop at the latest, "
            f"{sorted(took)[len(took) // 2]:.1f} s in the median (load {os.getloadavg()[0]:.1f})"
        )


def test_nothing_is_left_of_stopped_trials(stopped_study, ray_cluster):
    """The cluster lives on: no placement group holds its CPUs, no actor or process of Train its memory."""
    deadline = time.monotonic() + 60  # of the trial that was stopped last, as the study ended
    while (left := left_over(ray_cluster, stopped_study[0])) and time.monotonic() < deadline:
        time.sleep(1)
    assert not left


def of_a_trial(what: str) -> bool:
    return what in ("placement group", "RayTrainWorker", "TrainController")


def stored(directory) -> list[optuna.trial.FrozenTrial]:
    backend = optuna.storages.journal.JournalFileBackend(str(directory / "optuna.journal"))
    return optuna.load_study(study_name=directory.name, storage=optuna.storages.JournalStorage(backend)).trials


def left_over(ray_cluster, stops: int) -> list[str]:
    groups = listed(ray_cluster, "placement-groups")
    assert len(groups) > stops
    actors = [actor["class_name"] for actor in listed(ray_cluster, "actors") if actor["state"] != "DEAD"]
    return [
        *(group["state"] for group in groups if group["state"] != "REMOVED"),
        *(name for name in actors if "Train" in name),
        *processes(ray_cluster),
    ]


def processes(ray_cluster) -> list[str]:
    """Titles of the cluster's processes that belong to a trial."""
    found = []
    for process in psutil.Process(ray_cluster.head.pid).children(recursive=True):
        try:
            title = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if any(word in title for word in ("RayTrainWorker", "TrainController", "ImplicitFunc")):
            found.append(title)
    return found


def listed(ray_cluster, what: str) -> list[dict]:
    """What Ray's State API knows of them, ended ones included."""
    listing = ray_cluster.ray("list", what, "--address", ray_cluster.address, "--format", "json", "--limit", "1000")
    return json.loads(listing.stdout)
