"""What one rank raises ends the group at once, in that rank's own words, although the others wait for it in a reduction."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from tests.helpers.commands import environment

GROUP = """
import json, sys, time
from uvar_tune.config.schema import Config
from uvar_tune.ray_backend.cluster import ray_cluster
from uvar_tune.ray_backend.graceful_stop import GracefulShutdown
from uvar_tune.ray_backend.trainer import run_worker_group
from uvar_tune.specs import WorkerGroupSpec


def loop(parameters):
    import ray.train
    import torch
    import torch.distributed

    if ray.train.get_context().get_world_rank() == 1:
        raise LookupError("label 12 of image 7 is no class\\nseen by rank 1 alone")
    torch.distributed.all_reduce(torch.ones(1))


config = Config.model_validate({"run": {"workers": 2, "cpus_per_worker": 0.5}})
spec = WorkerGroupSpec(config=config, directory=sys.argv[1], seeds={}, run_name="group", ray_directory=sys.argv[1])
with ray_cluster():
    began = time.time()
    print(json.dumps([run_worker_group(spec, GracefulShutdown(), loop).to_dict(), time.time() - began]))
"""


@pytest.mark.ray
@pytest.mark.faults
def test_a_rank_says_itself_what_went_wrong(tmp_path):
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", GROUP, tmp_path], env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    result, seconds = json.loads(done.stdout.splitlines()[-1])
    assert result == {
        "kind": "crashed",
        "reason": "error",
        "error_type": "LookupError",
        "message": "label 12 of image 7 is no class seen by rank 1 alone",
        "images": 0,
    }
    assert seconds < 200 and time.monotonic() - began < 300  # gloo would wait for 30 minutes
