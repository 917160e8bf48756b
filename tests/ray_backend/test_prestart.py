"""Processes that Ray starts ahead of need: they are there before the next trial's actors, which take them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.helpers.commands import environment
from uvar_tune.ray_backend.prestart import ROLE_VARIABLE, TASK, WORKER

pytestmark = pytest.mark.faults
STUDY = """
import json, os, sys, time
import psutil, ray
from uvar_tune.ray_backend.cluster import ray_cluster
from uvar_tune.ray_backend.prestart import WorkerPrestarter


class Actor:
    def process(self):
        return os.getpid(), sorted({"ray.train", "ray.tune", "torch", "uvar_tune.ray_backend.trainer"} & set(sys.modules))


@ray.remote(num_cpus=0, runtime_env={"env_vars": {"RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0"}})
class TrainController(Actor):
    pass


@ray.remote(num_cpus=0)
class ImplicitFunc(Actor):  # what drives a trial, as Tune calls it
    pass


@ray.remote(num_cpus=0)
class RayTrainWorker(Actor):
    pass


KINDS = (TrainController, ImplicitFunc, RayTrainWorker)


def idle():
    return {process.pid for process in psutil.Process().children(recursive=True) if (process.cmdline() or [""])[0] == "ray::IDLE"}


def begin(trials, left):
    # the actors of trials that begin together, and the processes that wait when they work
    for trial in range(trials):
        prestarter.on_trial_start(left + trials - 1 - trial)
    actors = [actor.remote() for _ in range(trials) for actor in KINDS]
    pids = {ray.get(actor.process.remote())[0] for actor in actors}
    return actors, pids, idle()


def more_than(before, count, wait_sec):
    began = time.time()
    while len(idle() - before) < count and time.time() - began < wait_sec:
        time.sleep(0.2)
    time.sleep(3)  # for one too many, and for imports
    return idle() - before


with ray_cluster(), WorkerPrestarter() as prestarter:
    first, _, before = begin(1, 0)
    none = more_than(before, 1, 12)
    both, pids, before = begin(2, 1)
    ahead = more_than(before, 3, 60)
    asked = time.time()
    last = {kind.__ray_metadata__.class_name: kind.remote() for kind in KINDS}  # kept: an actor that nobody holds ends
    taken = {name: ray.get(actor.process.remote()) for name, actor in last.items()}
    print(json.dumps({"none": len(none), "ahead": len(ahead), "taken": all(pid in ahead for pid, _ in taken.values()),
                      "imported": {name: modules for name, (_, modules) in taken.items()},
                      "before": min(asked - psutil.Process(pid).create_time() for pid, _ in taken.values())}))
"""


@pytest.mark.ray
def test_the_next_actor_takes_a_process_that_waits(tmp_path):
    """As many as trials are still to come, none for the last."""
    done = subprocess.run(
        [sys.executable, "-c", STUDY], env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["none"], found["ahead"]) == (0, 3), "for the one trial to come"
    assert found["taken"] and found["before"] > 2
    assert found["imported"]["TrainController"] == ["ray.train", "ray.tune", "torch"]
    assert (
        "uvar_tune.ray_backend.trainer" in found["imported"]["ImplicitFunc"] and not found["imported"]["RayTrainWorker"]
    )


@pytest.mark.parametrize(
    "kind, has, lacks",
    [
        ({ROLE_VARIABLE: TASK}, ["ray"], ["ray.train", "torch"]),
        ({ROLE_VARIABLE: WORKER}, ["torch._dynamo", "uvar_tune.trial.trial"], []),
    ],
)
def test_a_process_imports_what_its_kind_needs(kind, has, lacks):
    asked = "from uvar_tune.ray_backend.prestart import worker_setup_hook; worker_setup_hook(); import json, sys; print(json.dumps([*sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", asked], env=environment(**kind), capture_output=True, text=True, timeout=120
    )
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert set(has) <= set(loaded) and not set(lacks) & set(loaded)


def test_trial_driver_imports_nothing_at_its_start():
    """Whatever the trainable needs was imported while the process waited: a trial does not wait for it."""
    script = """
import importlib, json, sys
from uvar_tune.ray_backend.prestart import _MODULES, DRIVER
for module in _MODULES[DRIVER]:
    importlib.import_module(module)
before = set(sys.modules)
from uvar_tune.ray_backend import _private
_private.quiet_torch_trainer()
print(json.dumps(sorted(name for name in set(sys.modules) - before if not name.startswith("ray."))))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, timeout=120
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [], done.stderr


def test_no_process_looks_for_gpus_too_early(tmp_path):
    """The first look fixes for good which GPUs a process has; a worker that is started ahead belongs to no trial yet."""
    asked = """
import torch
looked = []
def spied(module, name):
    real = getattr(module, name)
    setattr(module, name, lambda *given, **options: looked.append(name) or real(*given, **options))
for name in ("is_available", "device_count", "_lazy_init", "_device_count_nvml"):
    spied(torch.cuda, name)
if hasattr(torch._C, "_cuda_getDeviceCount"):
    spied(torch._C, "_cuda_getDeviceCount")
from uvar_tune.ray_backend.prestart import worker_setup_hook
worker_setup_hook()
print(looked)
torch.cuda.is_available()
print(looked[:1])
"""
    done = subprocess.run(
        [sys.executable, "-c", asked],
        env=environment(**{ROLE_VARIABLE: WORKER}),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.splitlines() == ["[]", "['is_available']"], done.stderr
