"""Clusters that grow on demand: whether this is one, and waiting until it holds a trial."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable

from ray.util.placement_group import placement_group, remove_placement_group

from uvar_tune.config.schema import RunConfig
from uvar_tune.errors import ConfigError
from uvar_tune.ray_backend import _private

logger = logging.getLogger(__name__)

_LOG_INTERVAL_SEC = 60.0
_GENERATED_TYPE = re.compile(r"node_[0-9a-f]+")  # the monitor's names for the nodes of a cluster without an autoscaler


def has_autoscaler(timeout_sec: float = 0.0) -> bool:
    """Whether the cluster has an autoscaler: a report on the head names node types that somebody has configured.

    Every head has a monitor that reports alike; without an autoscaler it generates a type for each node.

    Args:
        timeout_sec: for the first report of a head that has just been started.
    """
    deadline = time.monotonic() + timeout_sec
    while not (types := _private.autoscaler_node_types()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return any(name and not _GENERATED_TYPE.fullmatch(name) for name in types)


def wait_for_trial(run: RunConfig, request: str, describe_cluster: Callable[[], str]) -> None:
    """Request the resources of one trial from the autoscaler, and wait for them.

    Args:
        run: the resources of a trial, and how long to wait.
        request: the same in words.
        describe_cluster: returns the present resources in words.

    Raises:
        ConfigError: they are not there after `run.wait_resources_sec`.
    """
    bundle = {"CPU": run.cpus_per_worker, **({"GPU": run.gpus_per_worker} if run.gpus_per_worker else {})}
    deadline = time.monotonic() + run.wait_resources_sec
    group = placement_group([bundle] * run.workers, strategy="PACK")  # as Ray Train will request it
    try:
        while (remaining := deadline - time.monotonic()) > 0:
            logger.info(
                f"waiting for the autoscaler, {remaining:.0f} s at most: {request}; "
                f"the cluster has {describe_cluster()}"
            )
            if group.wait(math.ceil(min(remaining, _LOG_INTERVAL_SEC))):
                return
    finally:
        remove_placement_group(group)
    raise ConfigError(
        f"{request}; the cluster has {describe_cluster()}, and its autoscaler brought no more in "
        f"{run.wait_resources_sec:g} s (run.wait_resources_sec)",
        where="run.workers",
    )
