"""A worker that Ray ends because its node is about to run out of memory, before the system would end anything at all."""

from __future__ import annotations

import json
import subprocess
import sys

import psutil
import pytest

from tests.helpers.commands import environment

GROUP = """
import json, sys
from uvar_tune.config.schema import Config
from uvar_tune.ray_backend.cluster import ray_cluster
from uvar_tune.ray_backend.graceful_stop import GracefulShutdown
from uvar_tune.ray_backend.trainer import run_worker_group
from uvar_tune.specs import WorkerGroupSpec


def loop(parameters):
    import time

    import torch

    kept = []
    while len(kept) < 32:
        kept.append(torch.ones(2**26))  # 256 MiB
        time.sleep(0.1)


config = Config.model_validate({"run": {"cpus_per_worker": 0.5}})
spec = WorkerGroupSpec(config=config, directory=sys.argv[1], seeds={}, run_name="group", ray_directory=sys.argv[1])
with ray_cluster():
    print(json.dumps(run_worker_group(spec, GracefulShutdown(), loop).to_dict()))
"""
NEEDED = 6 * 2**30
pytestmark = [pytest.mark.ray, pytest.mark.faults]


@pytest.mark.skipif(
    psutil.virtual_memory().available < 1.5 * NEEDED, reason="this machine has too little memory to spare"
)
def test_the_reason_says_that_memory_was_low(tmp_path):
    memory = psutil.virtual_memory()
    threshold = (memory.total - memory.available + NEEDED) / memory.total
    done = subprocess.run(
        [sys.executable, "-c", GROUP, tmp_path],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment(RAY_memory_usage_threshold=f"{threshold:.3f}", RAY_memory_monitor_refresh_ms="100"),
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["kind"], result["reason"]) == ("crashed", "low_memory") and "used / " in result["message"]
