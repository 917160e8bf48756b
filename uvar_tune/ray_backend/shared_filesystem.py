"""Whether every node of a cluster sees the study's files."""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from uvar_tune.errors import ConfigError, first_line
from uvar_tune.ray_backend.process_roles import task_runtime_env

_READ_SEC = 120
_KNOWN_SEC = 30.0  # until all of Ray knows of a node that has only just joined


def check_shared_filesystem(directory: Path) -> None:
    """Each node must read what the driver wrote below ``run.root``.

    Raises:
        ConfigError: naming the node that does not.
    """
    nodes = _living()
    if len(nodes) < 2:
        return
    token = uuid.uuid4().hex
    probe = directory / f".probe-{token}"
    probe.write_text(token)
    try:
        asked = {node: _ask(node, probe) for node in nodes}
        for node, reference in asked.items():
            try:
                seen = _answer(node, reference, probe)
            except ray.exceptions.RayError as error:
                if node not in _living():
                    continue  # it has left since; whom a trial runs on is asked again when it starts
                raise ConfigError(
                    f"node {nodes[node]} does not read {directory} ({first_line(error)})", where="run.root"
                ) from None
            if seen != token:
                raise ConfigError(
                    f"node {nodes[node]} does not see {directory}: it must be a path that all nodes share",
                    where="run.root",
                )
    finally:
        probe.unlink()


def _living() -> dict[str, str]:
    """The addresses of the nodes that live, by id."""
    return {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}


def _ask(node: str, probe: Path) -> ray.ObjectRef:
    return _read_probe.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(str(probe))


def _answer(node: str, reference: ray.ObjectRef, probe: Path) -> Any:
    """What the node read. The raylet that places the task hears of a new node a moment after the head, and refuses till
    then.
    """
    deadline = time.monotonic() + _KNOWN_SEC
    while True:
        try:
            return ray.get(reference, timeout=_READ_SEC)
        except ray.exceptions.TaskUnschedulableError:
            if time.monotonic() >= deadline or node not in _living():
                raise
        time.sleep(0.5)
        reference = _ask(node, probe)


@ray.remote(num_cpus=0, runtime_env=task_runtime_env())
def _read_probe(path: str) -> str | None:
    return Path(path).read_text(encoding="utf-8") if Path(path).exists() else None
