"""What is really killed in the middle of a study of two short trials, and what comes of it.

Each ends with the same trials, none twice, and, as the seeds decide it, the same values as an undisturbed run.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from commands import end_session

pytestmark = pytest.mark.ray
STUDY = {"trials": 2, "startup_trials": 2}
TRAINING = {"images": 6400}
RUN = {"checkpoint_images": 640, "log_images": 64, "max_concurrent": 1}


def records(directory: Path, number: int = 0) -> list[dict]:
    path = directory / "trials" / f"{number:05d}" / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def images_seen(directory: Path, number: int) -> int:
    return max((record["images"] for record in records(directory, number) if "images" in record), default=0)


def wait_until(condition, process: subprocess.Popen, timeout: float = 240.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "it did not come so far"
        time.sleep(0.05)


def values(root: Path, name: str, trials: int = 2) -> list[float]:
    """The value of each trial, and that each stands there once and complete."""
    import optuna

    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(root / name / "optuna.journal")))
    study = optuna.load_study(study_name=name, storage=storage)
    assert [trial.number for trial in study.trials] == list(range(trials))
    assert all(trial.state.name == "COMPLETE" for trial in study.trials)
    for number in range(trials):  # a step that was computed again is not recorded twice
        seen = [record["images"] for record in records(root / name, number)
                if record["kind"] == "metrics" and "loss/total" in record["values"]]
        assert seen == sorted(set(seen)) and seen[-1] == TRAINING["images"]
    return [trial.value for trial in study.trials]


@pytest.fixture(scope="module")
def undisturbed(root, doors, tmp_path_factory):
    """Values of the same study, left alone."""
    import yaml
    from commands import TINY

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

    def start(name: str, **run) -> tuple[subprocess.Popen, Path, Path]:
        path = space(study={**STUDY, "name": name}, training=TRAINING, run={**RUN, **run})
        begun.append(doors.start("sweep", path))
        return begun[-1], path, root / name

    yield start
    for process in begun:
        end_session(process)




def train_workers(process: subprocess.Popen) -> list[psutil.Process]:
    return [child for child in psutil.Process(process.pid).children(recursive=True)
            if "RayTrainWorker" in " ".join(_title(child))]


def _title(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def kill_group(process: subprocess.Popen) -> None:
    """kill -9 of the sweep; its Ray follows when it notices."""
    children = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    psutil.wait_procs(children, timeout=60)


def test_a_training_worker_is_killed(begin, root, undisturbed):
    process, _, directory = begin("worker-killed")
    wait_until(lambda: images_seen(directory, 0) >= 2000, process)
    os.kill(train_workers(process)[0].pid, signal.SIGKILL)
    text, _ = process.communicate(timeout=400)
    assert process.returncode == 0, text
    assert values(root, "worker-killed") == undisturbed
    resumed = [record["images"] for record in records(directory) if record["kind"] == "resumed"]
    assert resumed and resumed[0] >= 1280  # no more than a checkpoint interval is repeated


def test_one_of_two_ranks_is_killed(begin, root, undisturbed):
    process, _, directory = begin("rank-killed", workers=2)
    wait_until(lambda: images_seen(directory, 0) >= 2000, process)
    os.kill(train_workers(process)[-1].pid, signal.SIGKILL)
    text, _ = process.communicate(timeout=500)
    assert process.returncode == 0, text
    assert values(root, "rank-killed") == pytest.approx(undisturbed, rel=0.2)  # two ranks sum in another order
    assert any(record["kind"] == "resumed" for record in records(directory))


def test_the_sweep_is_killed_and_started_again(begin, root, doors, undisturbed):
    process, path, directory = begin("sweep-killed")
    wait_until(lambda: images_seen(directory, 1) >= 2000, process)
    kill_group(process)
    again = doors("sweep", path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert values(root, "sweep-killed") == undisturbed
    resumed = [record["images"] for record in records(directory, 1) if record["kind"] == "resumed"]
    assert resumed and resumed[0] >= 1280


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_sweep_in_order(begin, root, doors, undisturbed, number):
    name = f"signal-{int(number)}"
    process, path, directory = begin(name)
    wait_until(lambda: images_seen(directory, 0) >= 1500, process)
    began = time.monotonic()
    os.kill(process.pid, number)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 130, text
    assert time.monotonic() - began < 60 and "The same command continues" in text
    assert not psutil.pid_exists(process.pid)
    again = doors("sweep", path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert values(root, name) == undisturbed
