"""A cluster that grows when it is asked: whether this is one, and waiting until it holds a trial."""

from __future__ import annotations

import json
import logging
import math
import re
import time

import ray
from ray.experimental.internal_kv import _internal_kv_get
from ray.util.placement_group import placement_group, remove_placement_group

from uvar_tune.config.schema import Config
from uvar_tune.errors import ConfigError

logger = logging.getLogger(__name__)

_SAY_EVERY_SEC = 60.0
_MIRRORED = re.compile(r"node_[0-9a-f]+")  # how Ray's monitor names the nodes of a cluster that nobody scales


def autoscaled(patience_sec: float) -> bool:
    """Whether an autoscaler stands behind this cluster: it reports to the head, of node types that somebody has named.

    Every head has a monitor that reports alike; where it may start no nodes it makes up a type for each node that it
    finds.

    Args:
        patience_sec: how long a first report is waited for, of a head that has just been started.
    """
    from ray.autoscaler.v2.utils import is_autoscaler_v2

    types, deadline = (
        _types_by_v2 if is_autoscaler_v2(fetch_from_server=True) else _types_by_v1,
        time.monotonic() + patience_sec,
    )
    while not (named := types()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return any(name and not _MIRRORED.fullmatch(name) for name in named)


def _types_by_v1() -> set[str]:
    """The types of all nodes, as the monitor reports them; none before its first report."""
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS

    told = json.loads(_internal_kv_get(DEBUG_AUTOSCALING_STATUS) or "{}").get("autoscaler_report") or {}
    return set((told.get("node_type_mapping") or {}).values())


def _types_by_v2() -> set[str]:
    from ray._raylet import GcsClient
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

    client = GcsClient(address=ray.get_runtime_context().gcs_address)
    reply = GetClusterStatusReply.FromString(client.get_cluster_status(timeout_s=30))
    if not reply.autoscaling_state.autoscaler_state_version:  # nobody reports
        return set()
    return {node.ray_node_type_name for node in reply.cluster_resource_state.node_states}


def wait_for_trial(config: Config, asked: str, describe) -> None:
    """Ask the autoscaler for what one trial takes, and wait until it is there.

    Args:
        asked: what a trial takes, in words.
        describe: what the cluster has, in words, whenever it is called.

    Raises:
        ConfigError: it is not there after `run.wait_resources_sec`.
    """
    run = config.run
    bundle = {"CPU": run.cpus_per_worker, **({"GPU": run.gpus_per_worker} if run.gpus_per_worker else {})}
    deadline = time.monotonic() + run.wait_resources_sec
    group = placement_group([bundle] * run.workers, strategy="PACK")  # as Ray Train will ask for it
    try:
        while (left := deadline - time.monotonic()) > 0:
            logger.info(f"waiting for the autoscaler, {left:.0f} s at most: {asked}; the cluster has {describe()}")
            if group.wait(math.ceil(min(left, _SAY_EVERY_SEC))):
                return
    finally:
        remove_placement_group(group)
    raise ConfigError(
        f"{asked}; the cluster has {describe()}, and its autoscaler brought no more in {run.wait_resources_sec:g} s "
        "(run.wait_resources_sec)",
        where="run.workers",
    )
