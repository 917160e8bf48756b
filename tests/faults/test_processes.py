"""`kill -9` of the processes around the training: controller, driver of a trial, head, node; a job that is stopped."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.helpers.commands import environment
from tests.helpers.faulty_study import (
    RUN,
    STUDY,
    alone,
    crashes,
    images_seen,
    kill,
    living,
    processes,
    train_workers,
    values,
    wait_until,
)
from tests.helpers.ray_head import free_ports, running

# `ray job stop` as its command does it, which itself takes as long to start as half a trial trains
STOP = """
import sys, time
from ray.job_submission import JobSubmissionClient
client = JobSubmissionClient(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
client.stop_job(sys.argv[2])
while not (status := client.get_job_status(sys.argv[2])).is_terminal():
    time.sleep(0.1)
print(status)
"""
pytestmark = [pytest.mark.ray, pytest.mark.faults]


@pytest.mark.parametrize(
    ("title", "fault"),
    [("TrainController", "Train's controller killed"), ("ImplicitFunc", "the trial's driver killed")],
)
def test_what_drives_a_trial_is_killed(begin, root, undisturbed, cost, title, fault):
    name = f"{title}-killed"
    process, _, directory = begin(name)
    wait_until(lambda: images_seen(directory, 0) >= 2000, process)
    began = time.time()
    kill(processes(f"ray::{title}", process.pid))
    text, _ = process.communicate(timeout=400)
    assert process.returncode == 0, text
    assert crashes(text) == ["attempt 1"]
    assert values(root, name) == undisturbed
    cost(fault, directory, 0, began)


def test_the_whole_ray_head_is_killed(begin, root, cli, undisturbed, cost):
    process, path, directory = begin("head-killed")
    wait_until(lambda: images_seen(directory, 1) >= 2000, process)
    everything = psutil.Process(process.pid).children(recursive=True)
    began = time.time()
    kill(
        [
            *processes("ray/gcs/gcs_server", process.pid),
            *processes("ray/raylet/raylet", process.pid),
            *train_workers(process),
        ]
    )
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 1, text
    assert "error: Ray" in text and "the same command continues" in text and "Traceback" not in text
    assert not living(everything, timeout=120)  # Ray's own agents look for a lost head for 60 s
    again = cli("sweep", path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert values(root, "head-killed") == undisturbed
    cost("the Ray head killed", directory, 1, began, "the sweep ends, the same command continues")


def test_the_raylet_of_the_driver_is_killed(begin, root, cli, undisturbed, cost):
    """Ray's head still answers, and no answer of a task comes any more."""
    process, path, directory = begin("raylet-killed")
    wait_until(lambda: images_seen(directory, 1) >= 2000, process)
    everything = psutil.Process(process.pid).children(recursive=True)
    began = time.time()
    kill(processes("ray/raylet/raylet", process.pid))
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 1, text
    assert (
        "error: Ray's raylet on this node at " in text
        and "the same command continues" in text
        and "Traceback" not in text
    )
    assert not living(everything, timeout=120)
    again = cli("sweep", path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert values(root, "raylet-killed") == undisturbed
    cost("the raylet of the driver's node killed", directory, 1, began, "the sweep ends, the same command continues")


@pytest.fixture
def nodes(cli, tmp_path_factory):
    """Three nodes: what `three_nodes` prints."""
    directory, script = tmp_path_factory.mktemp("n"), Path(__file__).parent.parent / "helpers" / "three_nodes.py"
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, script, directory / "ray", *map(str, free_ports(2))],
            text=True,
            env=environment(**cli.changes, RAY_AUTH_MODE="disabled"),
            cwd=directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    everything: list[psutil.Process] = []
    try:
        line = process.stdout.readline()
        assert line, (directory / "log").read_text()
        yield json.loads(line)
    finally:
        everything += psutil.Process(process.pid).children(recursive=True)
        process.stdin.close()
        process.wait(timeout=60)
        kill([child for child in everything if child.is_running()])


def test_a_node_is_lost(begin, nodes, root, undisturbed_pair, cost):
    """A trial's two ranks on two nodes of three; the third takes the place of the one that is lost."""
    process, _, directory = begin(
        "node-lost", workers=2, variables={"RAY_ADDRESS": nodes["address"], "RAY_AUTH_MODE": "disabled"}
    )
    wait_until(lambda: images_seen(directory, 0) >= 2000, process)
    ranks = {raylet: processes("RayTrainWorker", raylet) for raylet in nodes["raylets"]}
    lost = next(raylet for raylet in nodes["raylets"] if ranks[raylet])
    assert len(ranks[lost]) == 1
    began = time.time()
    kill([psutil.Process(lost), *psutil.Process(lost).children(recursive=True)])
    text, _ = process.communicate(timeout=500)
    assert process.returncode == 0, text
    assert "3 nodes" in text and crashes(text) == ["attempt 1"]
    assert values(root, "node-lost") == undisturbed_pair
    cost("a node of a trial's two lost", directory, 0, began)


def test_too_few_nodes_are_left_for_a_trial(begin, nodes, root, cli, undisturbed_pair, cost):
    """Of three nodes one is left, for trials of two ranks: it is said, waited for a while, and then left to the next time."""
    on_it = {"RAY_ADDRESS": nodes["address"], "RAY_AUTH_MODE": "disabled"}
    process, path, directory = begin("nodes-lost", workers=2, wait_resources_sec=20, variables=on_it)
    wait_until(lambda: images_seen(directory, 0) >= 2000, process)
    began = time.time()
    kill(
        [
            one
            for raylet in nodes["raylets"]
            for one in [psutil.Process(raylet), *psutil.Process(raylet).children(recursive=True)]
        ]
    )
    text, _ = process.communicate(timeout=240)
    assert process.returncode == 1, text
    needs = "a trial requests 2 workers with 1 CPUs and 0 GPUs each, a worker on one node; the cluster has 1 node, 1 CPUs, 0 GPUs"
    assert text.count(f"waiting for nodes, 20 s at most: {needs}") == 1, text
    assert text.rstrip().splitlines()[-1] == (
        f"error: {needs}, and no more came in 20 s (run.wait_resources_sec). The same command continues"
    )
    again = cli("sweep", path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert values(root, "nodes-lost") == undisturbed_pair
    cost("nodes lost, too few left", directory, 0, began, "it ends when none came; with nodes, it continues")


@pytest.fixture
def head(tmp_path_factory):
    """A Ray head to which jobs are submitted."""
    with running(tmp_path_factory.mktemp("h")) as cluster:
        yield cluster


def test_a_job_is_stopped_and_submitted_again(head, space, root, cost):
    images = 64_000  # a signal takes a second or two, in which a trial of the others would have ended
    undisturbed = alone(root, "calm-long", images)
    path = space(study={**STUDY, "name": "job-stopped"}, training={"images": images}, run=RUN)
    stop = {"env_vars": {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "30"}}  # then Ray kills it
    options = ("--runtime-env-json", json.dumps(stop), "--no-wait", "--submission-id", "first")
    submitted = head.submit("python", "-m", "uvar_tune.sweep", str(path), options=options)
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    directory = root / "job-stopped"
    stopper = subprocess.Popen(
        [sys.executable, "-c", STOP, head.address, "first"],
        env=head.environment,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert stopper.stdout.readline() == "ready\n"
    wait_until(lambda: images_seen(directory, 0) >= 2000)
    began = time.time()
    assert stopper.communicate("now\n", timeout=60)[0] == "STOPPED\n"
    log = head.ray("job", "logs", "--address", head.address, "first").stdout
    assert "The same command continues" in log and "Traceback" not in log, log  # in order, and so within the 30 s
    again = head.submit("python", "-m", "uvar_tune.sweep", str(path))
    assert again.returncode == 0, again.stdout + again.stderr
    assert values(root, "job-stopped", images=images) == undisturbed
    cost("ray job stop", directory, 0, began, "it ends in order, submitted again it continues")
