"""What is really killed in the middle of a study of two short trials, and what comes of it.

Each ends with the same trials, none twice, and, as the seeds decide it, the same values as an undisturbed run.
"""

from __future__ import annotations

import os
import signal
import time

import psutil
import pytest

from tests.helpers.faulty_study import (
    images_seen,
    kill_group,
    metric_rows,
    recorded_rows,
    train_workers,
    values,
    wait_until,
)
from tests.helpers.mlflow_server import MLflow

pytestmark = pytest.mark.ray


def test_a_training_worker_is_killed(begin, root, undisturbed, cost):
    process, _, directory = begin("worker-killed")
    wait_until(lambda: images_seen(directory, 0) >= 2000, process)
    began = time.time()
    os.kill(train_workers(process)[0].pid, signal.SIGKILL)
    text, _ = process.communicate(timeout=400)
    assert process.returncode == 0, text
    assert values(root, "worker-killed") == undisturbed
    cost("a training worker killed", directory, 0, began)


def test_one_of_two_ranks_is_killed(begin, root, undisturbed, cost):
    process, _, directory = begin("rank-killed", workers=2)
    wait_until(lambda: images_seen(directory, 0) >= 2000, process)
    began = time.time()
    os.kill(train_workers(process)[-1].pid, signal.SIGKILL)
    text, _ = process.communicate(timeout=500)
    assert process.returncode == 0, text
    assert values(root, "rank-killed") == pytest.approx(undisturbed, rel=0.2)  # two ranks sum in another order
    cost("one of two ranks killed", directory, 0, began)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.faults)])
def test_signal_stops_in_order_and_sweep_resumes(begin, root, cli, undisturbed, cost, tmp_path, number):
    """The first time in its first trial, the second time in its second; the same command each time. All the while there is no
    MLflow server, which learns everything afterwards."""
    name, server = f"signal-{int(number)}", MLflow(tmp_path)
    process, path, directory = begin(name, variables={"MLFLOW_TRACKING_URI": server.uri})
    wait_until(lambda: images_seen(directory, 0) >= 1000, process)
    began = time.time()
    os.kill(process.pid, number)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 130, text
    assert time.time() - began < 60 and "The same command continues" in text and "saved at" in text
    assert not psutil.pid_exists(process.pid)
    process, *_ = begin(name, variables={"MLFLOW_TRACKING_URI": server.uri})
    wait_until(lambda: images_seen(directory, 1) >= 2000, process)
    cost(f"{number.name} to the sweep", directory, 0, began, "the same command continues")
    began = time.time()
    kill_group(process)
    again = cli("sweep", path, MLFLOW_TRACKING_URI=server.uri)
    assert again.returncode == 0, again.stdout + again.stderr
    assert values(root, name) == undisturbed
    cost("the sweep killed", directory, 1, began, "the same command continues")
    check_sync(cli, directory, server, again.stdout)


@pytest.mark.faults
def test_mlflow_is_away_and_catches_up(begin, root, cli, undisturbed, tmp_path):
    """Not there at the start: the study says so once and ends as ever; `sync` brings every row, each once."""
    server = MLflow(tmp_path)
    process, _, directory = begin("mlflow-away", variables={"MLFLOW_TRACKING_URI": server.uri})
    text, _ = process.communicate(timeout=400)
    assert process.returncode == 0, text
    assert values(root, "mlflow-away") == undisturbed
    check_sync(cli, directory, server, text)


def check_sync(cli, directory, server: MLflow, text: str) -> None:
    """What the sweep said of a server that was away all the time, and that `sync` brings every row, each once."""
    assert "MLflow" in text and "uvar-tune sync" in text and "s3cret" not in text
    try:
        server.start()
        synced = cli("sync", "--study", directory.name, "--root", directory.parent, MLFLOW_TRACKING_URI=server.uri)
    finally:
        server.kill()
    assert synced.returncode == 0, synced.stdout + synced.stderr
    for number in range(2):
        rows = metric_rows(server.directory / "mlflow.db", f"{directory.name}/{number}")
        assert recorded_rows(directory, number) <= set(rows) and len(rows) == len(set(rows))
