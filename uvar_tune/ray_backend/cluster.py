"""Ray itself: joining a cluster or starting one, and what it holds."""

from __future__ import annotations

import contextlib
import logging
import os
import time
import warnings
from collections.abc import Callable
from typing import Any

import ray

from uvar_tune.config.schema import Config
from uvar_tune.errors import ConfigError, InfrastructureError, UvarError, first_line
from uvar_tune.ray_backend import process_roles as process_start
from uvar_tune.ray_backend.health import Place, RayHealthMonitor, answering
from uvar_tune.ray_backend.local_ray import free_port, on_loopback

logger = logging.getLogger(__name__)

# The controller takes one report a poll, 2 s by default, so that a run of a minute would wait as long as it works.
# Ray's watcher for preempted cloud nodes is one more process a trial; a lost node is noticed without it.
WORKER_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # Scoring between training steps would leave the CUDA allocator with fragments of fixed size.
    "PYTORCH_ALLOC_CONF": os.environ.get("PYTORCH_ALLOC_CONF", "expandable_segments:True"),
}
DRIVER_ENVIRONMENT = {
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's newer output prints even when it is told to be silent
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
}
_DASHBOARD_SEC = 90
_HEAD_AWAY_SEC = 45  # of a cluster, whose head may be restarted where it keeps its state; Ray itself waits a minute
_CONNECT_SEC = 15.0  # for a head that is only just being started
_TRIES = "RAY_gcs_server_port_wait_time_s"  # how often Ray tries to reach a head, 41 s each, 20 times of its own accord
_FIRST_REPORT_SEC = 15.0  # of a cluster that holds no trial: whether an autoscaler stands behind it
_API_SERVER = "RAY_API_SERVER_ADDRESS"


@contextlib.contextmanager
def cluster():
    """A connection to the cluster at RAY_ADDRESS (a submitted job has it), or a Ray of our own for as long as it lasts.

    Raises:
        ConfigError: no cluster answers at RAY_ADDRESS, or it runs without its dashboard.
    """
    os.environ.update({key: os.environ.get(key, value) for key, value in DRIVER_ENVIRONMENT.items()})
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="ray")
    address = os.environ.get("RAY_ADDRESS")
    if address and address.startswith("ray://"):
        raise ConfigError(
            f"{address!r} is a client's address, and a study's driver belongs on the cluster: submit it with "
            "`ray job submit`",
            where="RAY_ADDRESS",
        )
    if address:
        options, places, alone = {}, {"RAY_ADDRESS": address}, contextlib.nullcontext()
        os.environ.setdefault(_TRIES, "1")
    else:
        port, alone = free_port(), on_loopback()
        options = {"include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": port}
        places = {_API_SERVER: f"http://127.0.0.1:{port}"}
    # The State API looks for the one Ray of a machine; where there are several, everybody must be told which is ours.
    os.environ.update(places)
    try:
        with alone:
            answering(address or "local", _CONNECT_SEC)
            context = ray.init(
                address=address or "local",
                log_to_driver=False,
                logging_level=logging.ERROR,
                namespace="uvar_tune",
                runtime_env=_runtime_environment(places),
                configure_logging=True,
                **options,
            )
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ConfigError(
            f"no Ray cluster answers at {address or 'this machine'}: {first_line(error)}", where="RAY_ADDRESS"
        ) from error
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        process_start.announce(
            process_start.DRIVER
        )  # Ray starts some processes at once, one of them for the first trial
        _preflight(context.dashboard_url)
        logger.info(f"Ray {ray.__version__} {'at ' + address if address else 'started here'}: {describe()}")
        with RayHealthMonitor(*_places(_HEAD_AWAY_SEC if address else 0.0)):
            yield
    finally:
        ray.shutdown()
        if not address:
            os.environ.pop(_API_SERVER, None)


def _runtime_environment(places: dict[str, str]) -> dict[str, Any]:
    setup = process_start.setup
    return {
        "env_vars": {**WORKER_ENVIRONMENT, **places},
        "worker_process_setup_hook": f"{setup.__module__}.{setup.__name__}",
    }


def _places(head_away_sec: float) -> list[Place]:
    """Where Ray listens whatever becomes of trials: its head, and its raylet on this node."""
    here = ray.get_runtime_context()
    [node] = [node for node in ray.nodes() if node["NodeID"] == here.get_node_id()]
    raylet = f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
    return [Place("Ray's head", here.gcs_address, head_away_sec), Place("Ray's raylet on this node", raylet, 0.0)]


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
                raise ConfigError(
                    "this Ray cluster runs without its dashboard, whose State API frees stopped trials: install "
                    "ray[default] and start it with the dashboard on",
                    where="RAY_ADDRESS",
                ) from error
        time.sleep(1)


def describe() -> str:
    nodes = node_resources()
    total = {kind: sum(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU")}
    return f"{len(nodes)} node{'s' * (len(nodes) > 1)}, {total['CPU']:g} CPUs, {total['GPU']:g} GPUs"


def capacity(config: Config) -> int:
    """How many trials run at once: as many as the nodes hold, `run.max_concurrent` at most.

    With an autoscaler behind the cluster it is `run.max_concurrent` where that is given: what waits makes the cluster
    grow. Where no trial fits yet, one that does is waited for.

    Raises:
        ConfigError: the cluster cannot hold one.
    """
    from uvar_tune.ray_backend.autoscaler import autoscaled, wait_for_trial

    run, fits = config.run, fitting(config, node_resources())
    grows = autoscaled(_FIRST_REPORT_SEC if fits < 1 else 0.0)
    if fits < 1 and not grows:
        raise ConfigError(f"{asked(config)}; the cluster has {describe()}", where="run.workers")
    if fits < 1:
        wait_for_trial(config, asked(config), describe)
        fits = max(1, fitting(config, node_resources()))
    return run.max_concurrent if grows and run.max_concurrent else min(fits, run.max_concurrent or fits)


def node_resources() -> list[dict[str, float]]:
    """What each living node offers."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def this_machine() -> list[dict[str, float]]:
    """What a Ray of our own would offer here: the CPUs that Ray counts (a container's share of them) and the GPUs."""
    import torch
    from ray._private.utils import get_num_cpus

    return [{"CPU": float(get_num_cpus(override_docker_cpu_warning=True)), "GPU": float(torch.cuda.device_count())}]


def fitting(config: Config, nodes: list[dict[str, float]]) -> int:
    """How many trials these nodes hold at once. A worker lies on one node; those of a trial may lie on several."""
    run = config.run
    need = {"CPU": run.cpus_per_worker, "GPU": run.gpus_per_worker}
    # Ray counts in ten-thousandths: ten workers of 0.1 fit on 1, which floating point denies
    places = [
        min(int(round(node.get(kind, 0) / amount, 4)) for kind, amount in need.items() if amount > 0) for node in nodes
    ]
    return sum(places) // run.workers


def asked(config: Config) -> str:
    """What one trial takes, in words."""
    run = config.run
    each = " each" if run.workers > 1 else ""
    return (
        f"a trial asks for {run.workers} worker{'s' * (run.workers > 1)} with {run.cpus_per_worker:g} CPUs and "
        f"{run.gpus_per_worker:g} GPUs{each}, a worker on one node"
    )


def run_as_task(config: Config, function: Callable[..., Any], *arguments: Any) -> Any:
    """``function(*arguments)``, run as one task on a node that has what a worker needs.

    Raises:
        UvarError: its own; InfrastructureError where the process that ran it was.
    """
    run = config.run
    task = ray.remote(
        num_cpus=run.cpus_per_worker,
        num_gpus=run.gpus_per_worker,
        max_retries=2,
        runtime_env=process_start.task_runtime_env(),
    )(function)
    try:
        return ray.get(task.remote(*arguments))
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, UvarError) else error) from None
    except ray.exceptions.RayError as error:
        raise InfrastructureError(
            f"what a study shares was not made: {first_line(error)} The same command continues"
        ) from error
