"""Processes for the next trial, started and with their imports done while the present ones work.

A trial takes about six processes of Ray, one after the other, and most of the seconds before its first step are their
starts and imports. Ray keeps a process that has been started ahead of need for the first actor with the same runtime
environment.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections import Counter
from typing import Any, NamedTuple

import ray

from uvar_tune.ray_backend.process_roles import CONTROLLER, DRIVER, OTHER, announce

_EVERY_SEC = 1.0
_STARTING_SEC = 60.0  # after a trial began, its processes are looked for
_KINDS, _LAST = {"TrainController": CONTROLLER, "ImplicitFunc": DRIVER}, "RayTrainWorker"  # classes; the last to come
_QUIET_SEC = (
    6.0  # after the last: nobody waits any more for the cores that imports will take; shorter trials are over by then
)
_MOST_SEC = 20.0  # whatever comes
_KEPT_SEC = 3600


class _Wanted(NamedTuple):
    """A process to be started: of which kind, on which node, with which runtime environment (as Ray writes it)."""

    kind: str
    node: str
    environment: str


class WorkerPrestarter:
    """While it lasts, has Ray start, for each process that a trial took, another on the same node for a later one.

    It asks each node's raylet by a call that Ray's own clients have and its Python interface has not. Where that fails,
    trials start as slowly as without it, and nothing else changes.
    """

    def __init__(self):
        self._over = threading.Event()
        self._until = self._newest = self._oldest = 0.0
        self._left = self._ready = 0  # trials to come; for how many of these the processes have been started
        self._last = False
        self._seen: set[str] = set()
        self._taken: dict[str, _Wanted] = {}  # by actor: what trials have taken and nobody has replaced yet
        self._wanted: list[_Wanted] = []  # what is to be started, in this order

    def __enter__(self) -> WorkerPrestarter:
        self._job = ray.get_runtime_context().get_job_id()
        threading.Thread(
            target=self._watch, name="warm", daemon=True
        ).start()  # not joined: a lost head does not answer
        return self

    def __exit__(self, *_) -> None:
        self._over.set()

    def began(self, left: int) -> None:
        """A trial begins, after which ``left`` are still to come."""
        self._left, self._ready = left, max(0, self._ready - 1)
        self._until = time.monotonic() + _STARTING_SEC

    def _watch(self) -> None:
        while not self._over.wait(_EVERY_SEC):
            if not (self._taken or self._wanted or time.monotonic() < self._until):
                continue
            try:
                self._look()
                self._start_some()
            except (
                Exception
            ) as error:  # of a Ray that has no such call, or that is about to end: it is a matter of speed alone
                return logging.getLogger(__name__).info("no processes are started ahead of need: %s", error)

    def _look(self) -> None:
        from ray.util.state import list_actors

        now = time.monotonic()
        living = list_actors(
            filters=[("job_id", "=", self._job), ("state", "=", "ALIVE")], detail=True, limit=10000, timeout=30
        )
        fresh = [actor for actor in living if actor.actor_id not in self._seen]
        self._seen |= {actor.actor_id for actor in fresh}
        if fresh:
            self._newest, self._oldest = now, self._oldest if self._taken else now
            for actor in fresh:
                if not actor.class_name.startswith("_"):  # of these a cluster has one
                    kind = _KINDS.get(actor.class_name, OTHER)
                    self._taken[actor.actor_id] = _Wanted(kind, actor.node_id, actor.serialized_runtime_env)
            self._last = self._last or any(actor.class_name == _LAST for actor in fresh)
        if (self._last and now - self._newest >= _QUIET_SEC) or now - self._oldest >= _MOST_SEC:
            alive = {actor.actor_id for actor in living}
            taken = [wanted for actor, wanted in self._taken.items() if actor in alive]
            self._taken, self._last = {}, False
            trials = sum(wanted.kind == CONTROLLER for wanted in taken)
            followed = min(trials, self._left - self._ready)
            if followed > 0:
                self._ready += followed
                kept = [
                    wanted
                    for wanted, count in Counter(taken).items()
                    for _ in range(math.ceil(count * followed / trials))
                ]
                self._wanted += sorted(
                    kept
                )  # controllers, drivers, others: an actor gets the oldest process that suits it

    def _start_some(self) -> None:
        """As many as a node starts at once, one for each of its CPUs; it forgets what it is asked for beyond these."""
        nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]} if self._wanted else {}
        for name in {wanted.node for wanted in self._wanted}:
            here = [wanted for wanted in self._wanted if wanted.node == name]
            if node := nodes.get(name):
                same = [wanted for wanted in here if wanted.kind == here[0].kind]
                here = same[: max(1, int(node["Resources"].get("CPU", 0)))]
                for wanted in here:
                    self._start(node, wanted)
            for wanted in here:
                self._wanted.remove(wanted)

    def _start(self, node: dict[str, Any], wanted: _Wanted) -> None:
        if wanted.kind != OTHER:
            announce(wanted.kind, wanted.node)
        _prestart(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}", self._job, wanted.environment)


def _prestart(raylet: str, job: str, environment: str) -> None:
    """Have a raylet start a process for a job, with a runtime environment as Ray itself writes it."""
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated.common_pb2 import PYTHON
    from ray.core.generated.node_manager_pb2 import PrestartWorkersRequest
    from ray.core.generated.node_manager_pb2_grpc import NodeManagerServiceStub
    from ray.core.generated.runtime_environment_pb2 import RuntimeEnvInfo

    request = PrestartWorkersRequest(
        language=PYTHON,
        job_id=bytes.fromhex(job),
        num_workers=1,
        keep_alive_duration_secs=_KEPT_SEC,
        runtime_env_info=RuntimeEnvInfo(serialized_runtime_env=environment),
    )
    with contextlib.closing(init_grpc_channel(raylet)) as channel:
        NodeManagerServiceStub(channel).PrestartWorkers(request, timeout=30)
