"""How many trials a cluster holds, and waiting until it holds one."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import ray

from uvar_tune.config.schema import Config, RunConfig
from uvar_tune.errors import ConfigError, InfrastructureError
from uvar_tune.ray_backend import _private
from uvar_tune.ray_backend.autoscaler import has_autoscaler, wait_for_trial

logger = logging.getLogger(__name__)

_POLL_SEC = 5.0
_FIRST_REPORT_SEC = 15.0  # for the first report of an autoscaler, if the cluster holds no trial


def node_resources() -> list[dict[str, float]]:
    """The resources of each living node."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def local_resources() -> list[dict[str, float]]:
    """The resources that a local Ray would offer on this machine."""
    import torch

    return [{"CPU": _private.count_cpus(), "GPU": float(torch.cuda.device_count())}]


def count_fitting_trials(run: RunConfig, nodes: list[dict[str, float]]) -> int:
    """How many trials these nodes hold at once. A worker needs one node; the workers of a trial may use several."""
    need = {"CPU": run.cpus_per_worker, "GPU": run.gpus_per_worker}
    # Ray counts in ten-thousandths: ten workers of 0.1 fit on 1, which floating point denies
    workers = [
        min(int(round(node.get(kind, 0) / amount, 4)) for kind, amount in need.items() if amount > 0) for node in nodes
    ]
    return sum(workers) // run.workers


def describe_request(run: RunConfig) -> str:
    """The resources that one trial requests, in words."""
    each = " each" if run.workers > 1 else ""
    return (
        f"a trial requests {run.workers} worker{'s' * (run.workers > 1)} with {run.cpus_per_worker:g} CPUs and "
        f"{run.gpus_per_worker:g} GPUs{each}, a worker on one node"
    )


def describe_cluster() -> str:
    """The nodes, CPUs and GPUs of the cluster, in words."""
    nodes = node_resources()
    total = {kind: sum(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU")}
    return f"{len(nodes)} node{'s' * (len(nodes) > 1)}, {total['CPU']:g} CPUs, {total['GPU']:g} GPUs"


def max_concurrent_trials(config: Config) -> int:
    """How many trials run at once: as many as the nodes hold, at most `run.max_concurrent`.

    If the cluster has an autoscaler and `run.max_concurrent` is set, it is that number: pending trials make the cluster
    grow. If no trial fits yet, waits until one does.

    Raises:
        ConfigError: the cluster cannot hold a trial.
    """
    run, fitting = config.run, count_fitting_trials(config.run, node_resources())
    grows = has_autoscaler(_FIRST_REPORT_SEC if fitting < 1 else 0.0)
    if fitting < 1 and not grows:
        raise ConfigError(f"{describe_request(run)}; the cluster has {describe_cluster()}", where="run.workers")
    if fitting < 1:
        wait_for_trial(run, describe_request(run), describe_cluster)
        fitting = max(1, count_fitting_trials(run, node_resources()))
    return run.max_concurrent if grows and run.max_concurrent else min(fitting, run.max_concurrent or fitting)


class CapacityMonitor:
    """Context manager that watches, from a thread, whether the cluster still holds one trial.

    Ray itself waits for lost nodes without end and without a message.

    Args:
        run: the resources of a trial, and how long to wait for nodes.
        give_up: called with the error after `run.wait_resources_sec` without capacity for a trial.
    """

    def __init__(self, run: RunConfig, give_up: Callable[[InfrastructureError], None]):
        self._run, self._give_up = run, give_up
        self._closed = threading.Event()
        self._lacking_since: float | None = None

    def __enter__(self) -> CapacityMonitor:
        # not joined: a lost head does not answer
        threading.Thread(target=self._watch, name="capacity-monitor", daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(_POLL_SEC):
            try:
                error = self._poll()
            except (OSError, RuntimeError, ray.exceptions.RayError):  # a closed stream, or a Ray that is ending
                continue
            if error is not None and not self._closed.is_set():
                return self._give_up(error)

    def _poll(self) -> InfrastructureError | None:
        """Log a change; the error once waiting is over."""
        wait_sec, since = self._run.wait_resources_sec, self._lacking_since
        if count_fitting_trials(self._run, node_resources()) > 0:
            self._lacking_since = None
            if since is not None:
                logger.info(f"the cluster holds a trial again: {describe_cluster()}")
        elif since is None:
            self._lacking_since = time.monotonic()
            logger.warning(
                f"waiting for nodes, {wait_sec:.0f} s at most: {describe_request(self._run)}; "
                f"the cluster has {describe_cluster()}"
            )
        elif time.monotonic() - since > wait_sec:
            return InfrastructureError(
                f"{describe_request(self._run)}; the cluster has {describe_cluster()}, and no more came in "
                f"{wait_sec:g} s (run.wait_resources_sec). The same command continues"
            )
        return None
