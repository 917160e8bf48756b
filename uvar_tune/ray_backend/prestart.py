"""Processes for the next trial, started and with their modules imported while the present trials run.

A trial takes about six processes of Ray, one after the other, and most of the time before its first step is their start
and their imports. Ray keeps a prestarted process for the first actor with the same runtime environment.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import os
import threading
import time
from collections import Counter
from typing import Any, NamedTuple

import ray

from uvar_tune.ray_backend import _private

logger = logging.getLogger(__name__)

ROLE_VARIABLE = "UVAR_PROCESS"
WORKER, TASK = "worker", "task"  # a Train worker; a task of ours
CONTROLLER, DRIVER, OTHER = "controller", "driver", "other"  # roles that the environment does not show: announced
_ROLES = {_private.CONTROLLER_CLASS: CONTROLLER, _private.TRIAL_DRIVER_CLASS: DRIVER}
_MODULES = {
    WORKER: ("uvar_tune.ray_backend.trainer", "uvar_tune.trial.trial", "torch._dynamo"),  # torch.optim imports the last
    CONTROLLER: ("ray.tune", "ray.train.torch"),
    DRIVER: ("uvar_tune.ray_backend.trainer", "ray.train.torch"),
    OTHER: (),
}
_CONTROLLER_HELPER_MODULES = ("ray.train",)
_POLL_SEC = 1.0
_START_SEC = 60.0  # after the start of a trial, in which its processes are looked for
# After the last process of a trial nobody waits for the cores that imports will take; shorter trials have ended by
# then.
_QUIET_SEC = 6.0
_MAX_WAIT_SEC = 20.0
_KEEP_ALIVE_SEC = 3600


def task_runtime_env() -> dict[str, Any]:
    """The runtime environment of our own tasks: they import when Ray has assigned their CPUs."""
    return {"env_vars": {ROLE_VARIABLE: TASK}}


def worker_runtime_env(cpus: float) -> dict[str, Any]:
    """The runtime environment of a Train worker. Libraries are imported before Ray assigns CPUs: their threads are
    set.
    """
    return {"env_vars": {ROLE_VARIABLE: WORKER, "OMP_NUM_THREADS": str(max(1, int(cpus)))}}


def worker_setup_hook() -> None:
    """Import the modules that this process will need. Ray calls it by name in every process of a job.

    The environment identifies Train workers and our own tasks. Train controllers and trial drivers have the environment
    of their helper actors, so they are announced through the store of the head (`announce`). A wrong guess costs one
    import too many, or a later one. No module may initialise CUDA: the GPUs of the process are assigned later.
    """
    role = os.environ.get(ROLE_VARIABLE)
    if role == TASK:
        return
    if role == WORKER:
        modules = _MODULES[WORKER]
    elif _private.CONTROLLER_VARIABLE in os.environ:
        modules = _MODULES[CONTROLLER] if _claim(CONTROLLER) else _CONTROLLER_HELPER_MODULES
    else:
        modules = _MODULES[DRIVER] if _claim(DRIVER) else ()
    for module in modules:
        importlib.import_module(module)


def announce(role: str, node: str | None = None) -> None:
    """Announce the role of the next process that a node starts for this job.

    Args:
        role: CONTROLLER or DRIVER.
        node: its id; by default, the node of this process.
    """
    with contextlib.suppress(RuntimeError, OSError, ray.exceptions.RayError):  # the process then imports later
        _private.kv_put(_key(role, node), b"1")


def _claim(role: str) -> bool:
    """Whether this process takes the announced role; then no other does."""
    try:
        return _private.kv_delete(_key(role))
    except (RuntimeError, OSError, ray.exceptions.RayError):
        return False


def _key(role: str, node: str | None = None) -> str:
    context = ray.get_runtime_context()
    return f"uvar_tune/{role}/{context.get_job_id()}/{node or context.get_node_id()}"


class ProcessRequest(NamedTuple):
    """A process to be started.

    Args:
        role: of the process.
        node: id of the node.
        runtime_env: serialised by Ray.
    """

    role: str
    node: str
    runtime_env: str


class WorkerPrestarter:
    """Context manager that prestarts, for every process that a trial uses, one more on the same node for the next
    trial.

    Uses the raylet's `PrestartWorkers` RPC, which has no public Python API. If the RPC fails, trials start without
    prestarted processes.
    """

    def __init__(self):
        self._closed = threading.Event()
        self._poll_until = self._newest = self._oldest = 0.0
        self._remaining = self._ready = 0  # trials to come, and how many of them have prestarted processes
        self._complete = False
        self._seen: set[str] = set()
        self._in_use: dict[str, ProcessRequest] = {}  # by actor; used by trials and not yet replaced
        self._requests: list[ProcessRequest] = []  # to be started, in this order

    def __enter__(self) -> WorkerPrestarter:
        self._job = ray.get_runtime_context().get_job_id()
        # not joined: a lost head does not answer
        threading.Thread(target=self._watch, name="prestart", daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._closed.set()

    def on_trial_start(self, remaining: int) -> None:
        """A trial starts; ``remaining`` trials follow."""
        self._remaining, self._ready = remaining, max(0, self._ready - 1)
        self._poll_until = time.monotonic() + _START_SEC

    def _watch(self) -> None:
        while not self._closed.wait(_POLL_SEC):
            if not (self._in_use or self._requests or time.monotonic() < self._poll_until):
                continue
            try:
                self._poll()
                self._start_pending()
            except Exception as error:  # Ray lacks the RPC or is ending: only speed is lost
                return logger.debug("no processes are prestarted: %s", error)

    def _poll(self) -> None:
        """Note the new actors of trials; once they are all there, request one more process for each."""
        from ray.util.state import list_actors

        now = time.monotonic()
        filters = [("job_id", "=", self._job), ("state", "=", "ALIVE")]
        alive = list_actors(filters=filters, detail=True, limit=10000, timeout=30)
        new = [actor for actor in alive if actor.actor_id not in self._seen]
        self._seen |= {actor.actor_id for actor in new}
        if new:
            self._newest, self._oldest = now, self._oldest if self._in_use else now
            for actor in new:
                if not actor.class_name.startswith("_"):  # of those a cluster has one
                    role = _ROLES.get(actor.class_name, OTHER)
                    self._in_use[actor.actor_id] = ProcessRequest(role, actor.node_id, actor.serialized_runtime_env)
            self._complete = self._complete or any(actor.class_name == _private.WORKER_CLASS for actor in new)
        if (self._complete and now - self._newest >= _QUIET_SEC) or now - self._oldest >= _MAX_WAIT_SEC:
            self._request_next({actor.actor_id for actor in alive})

    def _request_next(self, alive: set[str]) -> None:
        """Request the processes of as many trials as still follow."""
        in_use = [request for actor, request in self._in_use.items() if actor in alive]
        self._in_use, self._complete = {}, False
        trials = sum(request.role == CONTROLLER for request in in_use)
        following = min(trials, self._remaining - self._ready)
        if following <= 0:
            return
        self._ready += following
        requests = [
            request for request, count in Counter(in_use).items() for _ in range(math.ceil(count * following / trials))
        ]
        self._requests += sorted(requests)  # controllers, drivers, others: an actor gets the oldest process that fits

    def _start_pending(self) -> None:
        """Start one process per CPU of each node: a raylet drops what exceeds that."""
        nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]} if self._requests else {}
        for node_id in {request.node for request in self._requests}:
            requests = [request for request in self._requests if request.node == node_id]
            if node := nodes.get(node_id):
                same_role = [request for request in requests if request.role == requests[0].role]
                requests = same_role[: max(1, int(node["Resources"].get("CPU", 0)))]
                for request in requests:
                    self._start(node, request)
            for request in requests:
                self._requests.remove(request)

    def _start(self, node: dict[str, Any], request: ProcessRequest) -> None:
        if request.role != OTHER:
            announce(request.role, request.node)
        raylet = f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
        _private.prestart_worker(raylet, self._job, request.runtime_env, _KEEP_ALIVE_SEC)
