"""Processes for the next trial, started and with their imports done while the present ones work.

A trial takes about six processes of Ray, one after the other, and most of the seconds before its first step are their starts
and imports. Ray keeps a process that has been started ahead of need for the first actor with the same runtime environment.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter

import ray

_EVERY_SEC = 1.0
_STARTING_SEC = 60.0  # after a trial began, its processes are looked for
_LAST = "RayTrainWorker"  # the class of those that come last
_QUIET_SEC = 2.0  # after the last: nobody waits any more for the cores that imports will take
_MOST_SEC = 20.0  # whatever comes
_KEPT_SEC = 3600


class Warm:
    """While it lasts, has Ray start, for each process that a trial took, another on the same node for a later one.

    It asks each node's raylet by a call that Ray's own clients have and its Python interface has not. Where that fails, trials
    start as slowly as without it, and nothing else changes.
    """

    def __init__(self):
        self._over = threading.Event()
        self._until = self._newest = self._oldest = 0.0
        self._more = self._last = False
        self._seen: set[str] = set()
        self._taken: Counter[tuple[str, str]] = Counter()  # (node, runtime environment) → processes not yet replaced

    def __enter__(self) -> Warm:
        self._job = ray.get_runtime_context().get_job_id()
        threading.Thread(target=self._watch, name="warm", daemon=True).start()  # not joined: a lost head does not answer
        return self

    def __exit__(self, *_) -> None:
        self._over.set()

    def began(self, left: int) -> None:
        """A trial begins, after which ``left`` are still to come."""
        self._more, self._until = left > 0, time.monotonic() + _STARTING_SEC

    def _watch(self) -> None:
        while not self._over.wait(_EVERY_SEC):
            if not (self._taken or time.monotonic() < self._until):
                continue
            try:
                self._look()
            except Exception as error:  # of a Ray that has no such call, or that is about to end: it is a matter of speed alone
                return logging.getLogger(__name__).info("no processes are started ahead of need: %s", error)

    def _look(self) -> None:
        from ray.util.state import list_actors

        now = time.monotonic()
        living = list_actors(filters=[("job_id", "=", self._job), ("state", "=", "ALIVE")], detail=True, limit=10000, timeout=30)
        fresh = [actor for actor in living if actor.actor_id not in self._seen]
        self._seen |= {actor.actor_id for actor in fresh}
        if fresh:
            self._newest, self._oldest = now, self._oldest if self._taken else now
            self._taken.update((actor.node_id, actor.serialized_runtime_env) for actor in fresh)
            self._last = self._last or any(actor.class_name == _LAST for actor in fresh)
        if (self._last and now - self._newest >= _QUIET_SEC) or now - self._oldest >= _MOST_SEC:
            taken, self._taken, self._last = self._taken, Counter(), False
            if self._more:
                self._replace(taken)

    def _replace(self, taken: Counter[tuple[str, str]]) -> None:
        nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
        for (name, environment), count in taken.items():
            if node := nodes.get(name):
                _prestart(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}", self._job, environment, count)


def _prestart(raylet: str, job: str, environment: str, count: int) -> None:
    """Have a raylet start processes for a job, with a runtime environment as Ray itself writes it."""
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated.common_pb2 import PYTHON
    from ray.core.generated.node_manager_pb2 import PrestartWorkersRequest
    from ray.core.generated.node_manager_pb2_grpc import NodeManagerServiceStub
    from ray.core.generated.runtime_environment_pb2 import RuntimeEnvInfo

    request = PrestartWorkersRequest(language=PYTHON, job_id=bytes.fromhex(job), num_workers=count,
                                     keep_alive_duration_secs=_KEPT_SEC,
                                     runtime_env_info=RuntimeEnvInfo(serialized_runtime_env=environment))
    with contextlib.closing(init_grpc_channel(raylet)) as channel:
        NodeManagerServiceStub(channel).PrestartWorkers(request, timeout=30)
