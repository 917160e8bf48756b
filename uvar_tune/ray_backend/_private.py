"""Everything of Ray that is not public: each use in one function, with what happens if a release of Ray lacks it.

`tests/ray_backend/test_private.py` fails if a symbol is gone. `pyproject.toml` bounds Ray above.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any

import ray

# Names that Ray gives to the actors of a trial, as the State API lists them.
CONTROLLER_CLASS, TRIAL_DRIVER_CLASS, WORKER_CLASS = "TrainController", "ImplicitFunc", "RayTrainWorker"
# Ray Train sets this variable for its controller and for the helper actors of the controller.
CONTROLLER_VARIABLE = "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC"
# How often Ray tries to reach a head, 41 s each; the default is 20.
CONNECT_TRIES_VARIABLE = "RAY_gcs_server_port_wait_time_s"
_MISSING = (ImportError, AttributeError, TypeError)


def kv_put(key: str, value: bytes) -> bool:
    """Store a value on the head; whether it could be. The callers work without: a stop then saves no checkpoint."""
    try:
        from ray.experimental.internal_kv import _internal_kv_put

        _internal_kv_put(key, value)
    except _MISSING:
        return False
    return True


def kv_get(key: str | bytes) -> bytes | None:
    """The value stored on the head under a key; None if there is none."""
    try:
        from ray.experimental.internal_kv import _internal_kv_get

        return _internal_kv_get(key)
    except _MISSING:
        return None


def kv_delete(key: str) -> bool:
    """Delete a key; whether it existed. Of several callers, one gets True."""
    try:
        from ray.experimental.internal_kv import _internal_kv_del

        return bool(_internal_kv_del(key))
    except _MISSING:
        return False


@contextlib.contextmanager
def bind_to_loopback() -> Iterator[None]:
    """Context in which a Ray that is started binds to the loopback address only.

    Ray does so on systems whose firewall asks for each listening program. It reads the variable when it is imported, so
    both the constant of this process and the environment of Ray's processes are set. Without the constant Ray binds to
    the address of the node.
    """
    from ray._private import ray_constants

    variable = getattr(ray_constants, "ENABLE_RAY_CLUSTERS_ENV_VAR", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
    default, previous = getattr(ray_constants, "ENABLE_RAY_CLUSTER", None), os.environ.get(variable)
    os.environ[variable] = "0"
    if default is not None:
        ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        if default is not None:
            ray_constants.ENABLE_RAY_CLUSTER = default
        if previous is None:
            del os.environ[variable]
        else:
            os.environ[variable] = previous


def count_cpus() -> float:
    """The CPUs that a local Ray would offer: in a container, its share; without Ray's function, those of the
    machine.
    """
    try:
        from ray._private.utils import get_num_cpus

        return float(get_num_cpus(override_docker_cpu_warning=True))
    except _MISSING:
        return float(os.cpu_count() or 1)


def autoscaler_node_types() -> set[str]:
    """The node types in the report of the cluster's autoscaler; empty before its first report, or if it is
    unreadable.
    """
    try:
        from ray.autoscaler.v2.utils import is_autoscaler_v2

        return _node_types_v2() if is_autoscaler_v2(fetch_from_server=True) else _node_types_v1()
    except _MISSING:
        return set()


def _node_types_v1() -> set[str]:
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS

    report = json.loads(kv_get(DEBUG_AUTOSCALING_STATUS) or "{}").get("autoscaler_report") or {}
    return set((report.get("node_type_mapping") or {}).values())


def _node_types_v2() -> set[str]:
    from ray._raylet import GcsClient
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

    client = GcsClient(address=ray.get_runtime_context().gcs_address)
    reply = GetClusterStatusReply.FromString(client.get_cluster_status(timeout_s=30))
    if not reply.autoscaling_state.autoscaler_state_version:  # no report
        return set()
    return {node.ray_node_type_name for node in reply.cluster_resource_state.node_states}


def prestart_worker(raylet: str, job_id: str, runtime_env: str, keep_alive_sec: int) -> None:
    """Have a raylet start a worker process for a job, by an RPC that has no Python API.

    Args:
        raylet: HOST:PORT.
        job_id: in hexadecimal.
        runtime_env: serialised by Ray.
        keep_alive_sec: for which an idle process is kept.

    Raises:
        Exception: Ray lacks the RPC; trials then start without prestarted processes.
    """
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated.common_pb2 import PYTHON
    from ray.core.generated.node_manager_pb2 import PrestartWorkersRequest
    from ray.core.generated.node_manager_pb2_grpc import NodeManagerServiceStub
    from ray.core.generated.runtime_environment_pb2 import RuntimeEnvInfo

    request = PrestartWorkersRequest(
        language=PYTHON,
        job_id=bytes.fromhex(job_id),
        num_workers=1,
        keep_alive_duration_secs=keep_alive_sec,
        runtime_env_info=RuntimeEnvInfo(serialized_runtime_env=runtime_env),
    )
    with contextlib.closing(init_grpc_channel(raylet)) as channel:
        NodeManagerServiceStub(channel).PrestartWorkers(request, timeout=30)


def has_auth_token() -> bool:
    """Whether Ray finds a token (variable or file). If that is unknown, False: Ray then makes one where it wants."""
    try:
        from ray._raylet import AuthenticationTokenLoader

        return AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True)
    except _MISSING:
        return False


def reload_auth_token() -> None:
    """Have this process read its token again."""
    with contextlib.suppress(*_MISSING):
        from ray._raylet import AuthenticationTokenLoader

        AuthenticationTokenLoader.instance().reset_cache()


def quiet_torch_trainer() -> type:
    """TorchTrainer without its SIGINT handler and without the actor that it starts for data sets of Ray Data.

    Where Ray lacks these methods, the class behaves like TorchTrainer.
    """
    from ray.train.torch import TorchTrainer

    class QuietTorchTrainer(TorchTrainer):
        def _register_sigint_handler(self, controller: Any) -> None:
            """The command's own handler stays."""

        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()
            return [callback for callback in callbacks if type(callback).__name__ != "DatasetsCallback"]

    return QuietTorchTrainer if hasattr(TorchTrainer, "_create_default_callbacks") else TorchTrainer
