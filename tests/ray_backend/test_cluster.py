"""Capacity of a cluster: counted from its nodes, refused if too small, waited for if it can grow."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from ray.util import get_node_ip_address

from tests.helpers.commands import environment
from tests.helpers.ray_head import BIN, Cluster, free_ports
from uvar_tune.config.loading import validate
from uvar_tune.ray_backend.capacity import count_fitting_trials, describe_request

HEAD = "f" * 51 + "00000"  # the provider for tests knows the head by this id
HEAD_TYPE = "ray.head.default"  # and by this type


@pytest.mark.parametrize(
    "nodes, run, trials",
    [
        ([{"CPU": 8}], {}, 8),
        ([{"CPU": 8}], {"workers": 3}, 2),
        ([{"CPU": 8}], {"cpus_per_worker": 3}, 2),
        ([{"CPU": 2}, {"CPU": 2}], {"cpus_per_worker": 3}, 0),  # four CPUs, but no node has three
        ([{"CPU": 2}, {"CPU": 2}], {"workers": 2, "cpus_per_worker": 2}, 1),  # the trial spread over both
        ([{"CPU": 3}, {"CPU": 3}], {"workers": 3, "cpus_per_worker": 2}, 0),
        ([{"CPU": 1}], {"cpus_per_worker": 0.1}, 10),
        ([{"CPU": 16, "GPU": 2}, {"CPU": 64}], {"gpus_per_worker": 1}, 2),
        ([{"CPU": 1, "GPU": 8}], {"gpus_per_worker": 1}, 1),
        ([{"CPU": 64}], {"gpus_per_worker": 1}, 0),
        ([{"memory": 1e9}], {}, 0),
    ],
)
def test_as_many_trials_as_the_nodes_hold(nodes, run, trials):
    config = validate({"run": run, "training": {"batch_size": 96, "images": 32064}}, "test")
    assert count_fitting_trials(config.run, nodes) == trials


def test_what_a_trial_takes_in_words():
    assert (
        describe_request(validate({}, "test").run)
        == "a trial requests 1 worker with 1 CPUs and 0 GPUs, a worker on one node"
    )
    assert "2 workers with 1.5 CPUs and 1 GPUs each" in describe_request(
        validate({"run": {"workers": 2, "cpus_per_worker": 1.5, "gpus_per_worker": 1}}, "test").run
    )


@pytest.mark.ray
@pytest.mark.faults
def test_small_fixed_cluster_is_not_waited_for(ray_cluster, space):
    """Two CPUs, and a trial of 64. The time to wait is only for autoscalers."""
    path = space(study={"name": "large"}, run={"cpus_per_worker": 64, "wait_resources_sec": 5000})
    refused = ray_cluster.submit("python", "-m", "uvar_tune.sweep", str(path))
    output = refused.stdout + refused.stderr
    assert refused.returncode and "exit code 2" in output and "waiting for the autoscaler" not in output
    assert (
        "a trial requests 1 worker with 64 CPUs and 0 GPUs, a worker on one node; the cluster has 1 node, 2 CPUs, 0 GPUs"
        in output
    )


class Growing(Cluster):
    """A head without CPUs, whose autoscaler starts up to two nodes of one CPU, by Ray's provider for tests."""

    def __init__(self, home, version: int):
        gcs, dashboard, agent, agent_grpc, client = free_ports(5)
        self.address = f"{get_node_ip_address()}:{gcs}"
        fake = {
            "RAY_FAKE_CLUSTER": "1",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
            "RAY_CLOUD_INSTANCE_ID": HEAD,
        }
        if version == 2:
            fake |= {"RAY_enable_autoscaler_v2": "1", "RAY_NODE_TYPE_NAME": HEAD_TYPE}
        self.environment = environment(HOME=str(home), RAY_AUTH_MODE="disabled", **fake)
        types = {
            HEAD_TYPE: {"resources": {}, "node_config": {}, "max_workers": 0},
            "small": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
        }
        provider = {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
            "gcs_address": self.address,
            "head_node_id": HEAD,
        }
        commands = {
            f"{who}_{what}": [] for who in ("head", "worker") for what in ("setup_commands", "start_ray_commands")
        }
        config = {
            "cluster_name": "growing",
            "max_workers": 2,
            "upscaling_speed": 1.0,
            "idle_timeout_minutes": 5,
            "auth": {},
            "provider": provider,
            "available_node_types": types,
            "head_node_type": HEAD_TYPE,
            "file_mounts": {},
            "cluster_synced_files": [],
            "file_mounts_sync_continuously": False,
            "rsync_exclude": [],
            "rsync_filter": [],
            "docker": {},
            "initialization_commands": [],
            "setup_commands": [],
            **commands,
        }
        (home / "autoscaler.yaml").write_text(yaml.safe_dump(config))
        self.log = (home / "ray.log").open("w")
        self.head = subprocess.Popen(
            [
                BIN / "ray",
                "start",
                "--head",
                "--block",
                "--port",
                str(gcs),
                "--dashboard-port",
                str(dashboard),
                "--dashboard-agent-listen-port",
                str(agent),
                "--dashboard-agent-grpc-port",
                str(agent_grpc),
                "--ray-client-server-port",
                str(client),
                "--min-worker-port",
                "22000",
                "--max-worker-port",
                "22999",
                "--temp-dir",
                str(home / "ray"),
                "--num-cpus",
                "0",
                "--autoscaling-config",
                str(home / "autoscaler.yaml"),
            ],
            env=self.environment,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait(self) -> None:
        deadline = time.monotonic() + 120
        while self.ray("status", "--address", self.address).returncode:
            assert time.monotonic() < deadline and self.head.poll() is None, Path(self.log.name).read_text(
                encoding="utf-8"
            )
            time.sleep(1)


@pytest.mark.ray
@pytest.mark.faults
@pytest.mark.parametrize("version", [1, 2])
def test_an_autoscaler_is_waited_for(tmp_path_factory, cli, space, version):
    """First for more than it can ever bring, then for one trial, which runs on the node that it starts."""
    growing = Growing(tmp_path_factory.mktemp("g"), version)
    on_it = {"RAY_ADDRESS": growing.address, "RAY_AUTH_MODE": "disabled"}
    try:
        growing.wait()
        path = space(study={"name": f"growing-{version}", "trials": 1}, run={"max_concurrent": 1})
        too_much = cli("sweep", path, "run.cpus_per_worker=4", "run.wait_resources_sec=5", **on_it)
        assert too_much.returncode == 2, too_much.stdout + too_much.stderr
        assert "waiting for the autoscaler, 5 s at most" in too_much.stdout
        assert re.search(r"error: .*1 worker with 4 CPUs .* and its autoscaler brought no more in 5 s", too_much.stderr)
        done = cli("sweep", path, "run.wait_resources_sec=300", timeout=1800, **on_it)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "the cluster has 1 node, 0 CPUs, 0 GPUs" in done.stdout and "trial 0: fid" in done.stdout
    finally:
        growing.close()
