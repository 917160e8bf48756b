"""A real MLflow server that dies, or hangs, in the middle of a study: nobody waits for it, and it misses nothing.

What "nobody waits" means: the trials have the values of a study without a server's trouble, trials begin, end and are scored
while it is away, and no step takes as long as one request to a server that does not answer.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.helpers.commands import end_session
from tests.helpers.faulty_study import (
    RUN,
    STUDY,
    TRAINING,
    alone,
    images_seen,
    metric_rows,
    recorded_rows,
    records,
    values,
    wait_until,
)
from tests.helpers.mlflow_server import MLflow, query

pytestmark = [pytest.mark.ray, pytest.mark.faults]

TRIALS = 7
REQUEST_SEC = 10  # after which a request to a hung server is given up
LONGER = {**STUDY, "trials": TRIALS, "startup_trials": TRIALS}


@pytest.fixture(scope="module")
def left_alone(root):
    """Values of the same study without a server."""
    return alone(root, "calm-outages", trials=TRIALS, startup_trials=TRIALS)


@pytest.fixture
def study(root, cli, space, tmp_path):
    """Starts the study under a name, logged to a server; (process, its directory, the server)."""
    server, begun = MLflow(tmp_path), []

    def start(name: str):
        server.start()
        path = space(study={**LONGER, "name": name}, training=TRAINING, run=RUN)
        begun.append(cli.start("sweep", path, MLFLOW_TRACKING_URI=server.uri))
        return begun[-1], root / name, server

    yield start
    for process in begun:
        end_session(process)
    if server.process is not None and server.process.poll() is None:
        server.signal(signal.SIGCONT)
    server.kill()


def test_killed_for_a_minute(study, root, cli, left_alone):
    process, directory, server = study("server-killed")
    wait_until(lambda: images_seen(directory, 0) >= 1000, process)
    server.kill()
    span = outage(process, directory, least_sec=60)
    server.start()
    text = ended(process, cli, root, server)
    assert "does not answer" in text and text.count("does not answer") == 1
    assert values(root, "server-killed", TRIALS) == left_alone
    assert_nobody_waited(directory, *span)
    assert_all_there_once(directory, server)


def test_hung_for_half_a_minute(study, root, cli, left_alone):
    process, directory, server = study("server-hung")
    wait_until(lambda: images_seen(directory, 0) >= 1000, process)
    server.signal(signal.SIGSTOP)
    span = outage(process, directory, least_sec=30)
    server.signal(signal.SIGCONT)
    text = ended(process, cli, root, server)
    assert "does not answer (timed out)" in text
    assert values(root, "server-hung", TRIALS) == left_alone
    assert_nobody_waited(directory, *span)
    assert_all_there_once(directory, server)


def outage(process, directory: Path, least_sec: float) -> tuple[float, float]:
    """Let so much time pass, and at least until a trial has begun and ended within it; (when it began, when it ended)."""
    began = time.time()
    wait_until(lambda: time.time() - began >= least_sec and within(directory, began, time.time()), process, timeout=600)
    return began, time.time()


def within(directory: Path, began: float, ended: float) -> list[int]:
    """The trials whose whole record lies between two times."""
    found = []
    for number in range(TRIALS):
        lines = records(directory, number)
        if lines and lines[0]["time"] > began and lines[-1]["kind"] == "ended" and lines[-1]["time"] < ended:
            found.append(number)
    return found


def ended(process, cli, root: Path, server) -> str:
    """What the sweep said; pending data is sent by the command that it names if the study ended before the server was back."""
    text, _ = process.communicate(timeout=600)
    assert process.returncode == 0, text
    if "They are kept" in text:
        synced = cli(
            "sync",
            "--study",
            Path(text.split("--study ")[1].split()[0]).name,
            "--root",
            root,
            MLFLOW_TRACKING_URI=server.uri,
        )
        assert synced.returncode == 0, synced.stdout + synced.stderr
    else:
        assert "answers again" in text
    assert "s3cret" not in text and "Traceback" not in text
    return text


def assert_nobody_waited(directory: Path, began: float, ended: float) -> None:
    assert within(directory, began, ended)
    for number in range(TRIALS):
        steps = [
            record["time"]
            for record in records(directory, number)
            if record["kind"] == "metrics" and "loss/total" in record["values"]
        ]
        assert max(later - earlier for earlier, later in zip(steps, steps[1:], strict=False)) < REQUEST_SEC


def assert_all_there_once(directory: Path, server) -> None:
    """Each trial has one run, finished, with its parameters, its files and every recorded value once."""
    database = server.directory / "mlflow.db"
    for number in range(TRIALS):
        trial = f"{directory.name}/{number}"
        rows = metric_rows(database, trial)
        assert len(rows) == len(set(rows)) and recorded_rows(directory, number) <= set(rows)
        [(run_id, status)] = query(
            database,
            "select r.run_uuid, r.status from runs r join tags t on r.run_uuid = t.run_uuid where "
            "t.key = 'uvar.trial' and t.value = ? and r.lifecycle_stage = 'active'",
            trial,
        )
        assert status == "FINISHED"
        params = dict(query(database, "select key, value from params where run_uuid = ?", run_id))
        assert params["training.images"] == str(TRAINING["images"]) and "inference.cfg_scale" in params
        folder = next((server.directory / "artifacts").glob(f"*/{run_id}/artifacts"))
        assert {"config.yaml"} | {
            f"samples/{path.name}" for path in (directory / "trials" / f"{number:05d}" / "samples").iterdir()
        } <= {str(path.relative_to(folder)) for path in folder.rglob("*")}
