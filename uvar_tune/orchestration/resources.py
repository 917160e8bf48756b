"""Ray itself: joining a cluster or starting one, what it holds, and whether every node sees the study's files."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from uvar_tune.config import Config
from uvar_tune.errors import ConfigError

# The controller takes one report a poll, 2 s by default, so that a run of a minute would wait as long as it works.
# Ray's watcher for preempted cloud nodes is one more process a trial; a lost node is noticed without it.
WORKER_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}
DRIVER_ENVIRONMENT = {
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's newer output prints even when it is told to be silent
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
}
_DASHBOARD_SEC = 90
_API_SERVER = "RAY_API_SERVER_ADDRESS"


@contextlib.contextmanager
def cluster(say):
    """A connection to the cluster at RAY_ADDRESS (a submitted job has it), or a Ray of our own for as long as it lasts.

    Raises:
        ConfigError: no cluster answers at RAY_ADDRESS, or it runs without its dashboard.
    """
    os.environ.update({key: os.environ.get(key, value) for key, value in DRIVER_ENVIRONMENT.items()})
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="ray")
    address = os.environ.get("RAY_ADDRESS")
    if address:
        options, places = {}, {"RAY_ADDRESS": address}
    else:
        port = _free_port()
        options = {"include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": port}
        places = {_API_SERVER: f"http://127.0.0.1:{port}"}
    # The State API looks for the one Ray of a machine; where there are several, everybody must be told which is ours.
    os.environ.update(places)
    try:
        context = ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, namespace="uvar_tune",
                           runtime_env={"env_vars": {**WORKER_ENVIRONMENT, **places}}, configure_logging=True, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(f"no Ray cluster answers at {address or 'this machine'}: {first_line(error)}",
                          where="RAY_ADDRESS") from error
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        _preflight(context.dashboard_url)
        say(f"Ray {ray.__version__} {'at ' + address if address else 'started here'}: {describe()}")
        yield
    finally:
        ray.shutdown()
        if not address:
            os.environ.pop(_API_SERVER, None)


def _free_port() -> int:
    """A port for the dashboard of an own Ray. Where to look first follows the process, so that two that start at once differ."""
    first = 8265 + os.getpid() % 500
    for port in range(first, first + 500):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ConfigError("no port is free for Ray's dashboard", where="this machine")


def _preflight(dashboard_url: str | None) -> None:
    """Without the State API a stopped trial's placement group is never freed and the study would hang.

    A dashboard that has just been started, or whose machine is busy, is given a minute to answer.
    """
    from ray.util.state import list_nodes
    from ray.util.state.exception import RayStateApiException

    deadline = time.monotonic() + (_DASHBOARD_SEC if dashboard_url else 0)
    while True:
        try:
            list_nodes(limit=1, timeout=30, raise_on_missing_output=False)
            return
        except (RayStateApiException, ConnectionError, RuntimeError) as error:
            if time.monotonic() >= deadline:
                raise ConfigError("this Ray cluster runs without its dashboard, whose State API frees stopped trials: install "
                                  "ray[default] and start it with the dashboard on", where="RAY_ADDRESS") from error
        time.sleep(1)


def describe() -> str:
    total = ray.cluster_resources()
    nodes = sum(node["Alive"] for node in ray.nodes())
    return f"{nodes} node{'s' * (nodes > 1)}, {total.get('CPU', 0):g} CPUs, {total.get('GPU', 0):g} GPUs"


def capacity(config: Config) -> int:
    """How many trials run at once.

    Raises:
        ConfigError: the cluster cannot hold one.
    """
    run, total = config.run, ray.cluster_resources()
    need = {"CPU": run.workers * run.cpus_per_worker, "GPU": run.workers * run.gpus_per_worker}
    fits = min(int(total.get(kind, 0) // amount) for kind, amount in need.items() if amount > 0)
    if fits < 1:
        raise ConfigError(f"a trial asks for {run.workers} workers with {need['CPU']:g} CPUs and {need['GPU']:g} GPUs "
                          f"together; the cluster has {describe()}", where="run.workers")
    return min(fits, run.max_concurrent or fits)


def remotely(config: Config, function: Callable[..., Any], *arguments: Any) -> Any:
    """``function(*arguments)``, run as one task on a node that has what a worker needs.

    Raises:
        ConfigError: its own.
    """
    run = config.run
    task = ray.remote(num_cpus=run.cpus_per_worker, num_gpus=run.gpus_per_worker, max_retries=2)(function)
    try:
        return ray.get(task.remote(*arguments))
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, ConfigError) else error) from None


def check_shared(directory: Path) -> None:
    """Each node must read what the driver wrote below ``run.root``.

    Raises:
        ConfigError: naming the node that does not.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return
    token = uuid.uuid4().hex
    probe = directory / f".probe-{token}"
    probe.write_text(token)
    try:
        strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        read = {node["NodeManagerAddress"]: _read_probe.options(scheduling_strategy=strategy(node["NodeID"], soft=False))
                .remote(str(probe)) for node in nodes}
        for address, reference in read.items():
            if ray.get(reference, timeout=120) != token:
                raise ConfigError(f"node {address} does not see {directory}: it must be a path that all nodes share",
                                  where="run.root")
    finally:
        probe.unlink()


@ray.remote(num_cpus=0)
def _read_probe(path: str) -> str | None:
    return Path(path).read_text() if Path(path).exists() else None


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
