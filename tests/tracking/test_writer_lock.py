"""A trial's directory has one writer: the next one waits for a worker that outlived its driver."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.commands import environment
from uvar_tune.errors import InfrastructureError
from uvar_tune.tracking.metrics_log import open_metrics_log, read_records

OUTLIVES = """
import sys, time
from pathlib import Path
from uvar_tune.tracking.metrics_log import open_metrics_log
with open_metrics_log(Path(sys.argv[1]), attempt=1) as metrics_log:
    for images in range(1, 100_000):
        metrics_log.metrics(images, {"loss/total": 1.0})
        if images == 1:
            print("writing", flush=True)
        time.sleep(0.01)
"""


@pytest.fixture
def outliving(tmp_path):
    """A process that writes a trial's record without end."""
    process = subprocess.Popen(
        [sys.executable, "-c", OUTLIVES, tmp_path], env=environment(), text=True, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == "writing\n"
    yield process
    process.kill()
    process.wait()


def test_next_attempt_waits_for_the_last_worker(tmp_path, outliving):
    began = time.monotonic()
    killer = subprocess.Popen(
        [sys.executable, "-c", "import os, sys, time; time.sleep(1); os.kill(int(sys.argv[1]), 9)", str(outliving.pid)]
    )
    with open_metrics_log(tmp_path, attempt=2) as metrics_log:
        waited = time.monotonic() - began
        reached = max(record["images"] for record in read_records(tmp_path / "metrics.jsonl")[0] if "images" in record)
        metrics_log.metrics(reached, {"loss/total": 2.0})  # has been written
        metrics_log.metrics(reached + 1, {"loss/total": 2.0})
    killer.wait()
    assert waited >= 0.9
    records, _ = read_records(tmp_path / "metrics.jsonl")
    assert [record["text"] for record in records if record["kind"] == "log"] == [
        f"waited for process {outliving.pid} on {socket.gethostname()}, of an earlier attempt, to end"
    ]
    assert [record["attempt"] for record in records] == [1] * reached + [2, 2]
    assert [record["images"] for record in records if "images" in record] == list(range(1, reached + 2))


def test_lock_wait_is_bounded(tmp_path, outliving):
    with (
        pytest.raises(InfrastructureError, match=f"is still written by process {outliving.pid} "),
        open_metrics_log(tmp_path, wait_sec=0.3),
    ):
        pass


def test_other_ranks_have_no_log(tmp_path, outliving):
    with open_metrics_log(tmp_path, rank=1) as metrics_log:
        assert metrics_log is None


def test_free_lock_is_taken_at_once(tmp_path):
    for attempt in (1, 2):
        with open_metrics_log(tmp_path / "new", attempt=attempt) as metrics_log:
            metrics_log.event("began")
    assert [record["kind"] for record in read_records(Path(tmp_path / "new" / "metrics.jsonl"))[0]] == [
        "began",
        "began",
    ]
