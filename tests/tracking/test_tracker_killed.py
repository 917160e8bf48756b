"""A driver killed with SIGKILL in the middle, and the next one: every row once, counted in MLflow's database."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.helpers.mlflow_store import expected
from uvar_tune.tracking import run_ids

DRIVER = Path(__file__).parents[1] / "helpers" / "killed_driver.py"


def drive(store, study, first, last, pause, finish=""):
    command = [sys.executable, str(DRIVER), str(store.root), study, store.uri, *map(str, (first, last, pause)), finish]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )


def test_killed_driver_is_continued(store, log_lines):
    driver = drive(store, "killed", 0, 100_000, 0.02)
    sent = []
    while len(sent) < 60:  # some of it has been sent, more has been recorded
        time.sleep(0.2)
        assert driver.poll() is None
        run_id = run_ids(store.root / "killed" / "mlflow").get(0)
        sent = store.rows(run_id) if run_id else []
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    store.write("killed", 0, range(0))  # truncates the line within which the writer was killed
    done = len((store.trial("killed", 0) / "metrics.jsonl").read_text().splitlines())
    state = store.root / "killed" / "mlflow" / "state.json"
    behind = state.read_text()
    again = drive(store, "killed", done - 5, done + 50, 0.0)
    assert again.communicate()[0].splitlines() == ["closed"]
    state.write_text(behind)  # as if it had been killed between sending and noting it
    final = drive(store, "killed", 0, 0, 0.0, "finish")
    assert final.communicate()[0].splitlines() == ["closed"]
    [run_id] = store.runs("uvar.trial", "killed/0")
    assert store.rows(run_id) == sorted([*expected(range(done + 50)), ("fid", 64 * (done + 49), 1.0)])
    assert store.status(run_id) == "FINISHED"
