"""Ray itself: a local Ray for as long as a command runs, or a cluster that exists; tasks and the shared file system."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import socket
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from uvar_tune.config.schema import Config
from uvar_tune.errors import ConfigError, InfrastructureError, UvarError, first_line
from uvar_tune.ray_backend import _private
from uvar_tune.ray_backend.capacity import describe_cluster
from uvar_tune.ray_backend.health import Endpoint, LostRay, RayHealthMonitor, wait_for_port
from uvar_tune.ray_backend.prestart import DRIVER, announce, task_runtime_env, worker_setup_hook

logger = logging.getLogger(__name__)

# The controller takes one report per poll, 2 s by default: a run of a minute would wait as long as it works.
# Ray's watcher for preempted cloud nodes is one more process per trial; a lost node is noticed without it.
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
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's newer output prints even at verbosity 0
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
}
_LOCAL_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0"}
_DASHBOARD_SEC = 90
_HEAD_AWAY_SEC = 45.0  # of a cluster whose head may be restarted; Ray itself waits a minute
_CONNECT_SEC = 15.0  # for a head that is being started
_API_SERVER = "RAY_API_SERVER_ADDRESS"
_MAX_TEMP_DIR = 36  # characters: Ray adds up to 70, and the path of a Unix socket has at most 107
_TEMP_DIRS = ("/tmp", "/var/tmp", "/dev/shm")
_READ_SEC = 120
_NEW_NODE_SEC = 30.0  # until all of Ray knows a node that has just joined


@contextlib.contextmanager
def ray_cluster() -> Iterator[LostRay]:
    """Context with a connection to Ray.

    The Ray that the caller has initialised, else the cluster at RAY_ADDRESS (which a submitted job has), else a local
    Ray until the context ends. A Ray of the caller keeps running, and its handlers and loggers are left alone.

    Yields:
        Whether Ray has been lost meanwhile; the context then ends with `InfrastructureError`.

    Raises:
        ConfigError: Ray does not start, no cluster answers at RAY_ADDRESS, or it runs without its dashboard.
        InfrastructureError: Ray was lost.
    """
    lost = LostRay()
    with contextlib.ExitStack() as stack:
        if ray.is_initialized():
            stack.enter_context(_environment(DRIVER_ENVIRONMENT))
            stack.enter_context(_environment(_no_proxy(_node_hosts()), overwrite=True))
            # for the State API, which otherwise looks for the only Ray of this machine
            address = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
            stack.enter_context(_environment(address, overwrite=True))
            where, timeout_sec, dashboard = "of this process", _HEAD_AWAY_SEC, True
        else:
            where, timeout_sec, dashboard = stack.enter_context(_connection())
        announce(DRIVER)  # Ray starts some processes at once, one of them for the first trial
        _check_state_api(dashboard)
        logger.info(f"Ray {ray.__version__} {where}: {describe_cluster()}")
        stack.enter_context(RayHealthMonitor(*_endpoints(timeout_sec), report=lost.report))
        try:
            yield lost
        except BaseException:
            lost.raise_if_lost()
            raise
        lost.raise_if_lost()


@contextlib.contextmanager
def _connection() -> Iterator[tuple[str, float, bool]]:
    """Context with a connection of our own: (where, how long the head may be away in seconds, has a dashboard)."""
    address = os.environ.get("RAY_ADDRESS")
    if address and address.startswith("ray://"):
        raise ConfigError(
            f"{address!r} is the address of a Ray client, and a study's driver runs on the cluster: submit it with "
            "`ray job submit`",
            where="RAY_ADDRESS",
        )
    with _quiet_ray(), _environment(DRIVER_ENVIRONMENT):
        start = _joined(address) if address else _local()
        with start as context:
            try:
                with _environment(_no_proxy(_node_hosts()), overwrite=True):
                    where = f"at {address}" if address else "started here"
                    yield where, _HEAD_AWAY_SEC if address else 0.0, bool(context.dashboard_url)
            finally:
                ray.shutdown()


@contextlib.contextmanager
def _joined(address: str) -> Iterator[Any]:
    """Context of `ray.init` with the cluster at an address."""
    direct = _no_proxy([_host(address)])
    # of the nodes' own lists, which Ray expands, nothing is lost
    remote = {name: f"${{{name}}},{value}" for name, value in direct.items()}
    with _environment({_private.CONNECT_TRIES_VARIABLE: "1"}), _environment(direct, overwrite=True):
        try:
            wait_for_port(address, _CONNECT_SEC)
            context = _init(address, {"RAY_ADDRESS": address, **remote})
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise ConfigError(
                f"no Ray cluster answers at {address}: {first_line(error)}", where="RAY_ADDRESS"
            ) from error
        yield context


@contextlib.contextmanager
def _local() -> Iterator[Any]:
    """Context of `ray.init` with a new local Ray: bound to loopback, without usage statistics and proxies."""
    port = _free_port()
    # The State API finds the only Ray of a machine; if there are several, every process needs the address.
    own = {_API_SERVER: f"http://127.0.0.1:{port}", **_no_proxy([])}
    with (
        _temp_dir() as temp_dir,
        _environment(own, overwrite=True),
        _environment(_LOCAL_ENVIRONMENT),
        _auth_token(),
    ):
        options = {"include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": port}
        short = {}
        if temp_dir is not None:
            options["_temp_dir"] = short["TMPDIR"] = str(temp_dir)  # also for the sockets of the dashboard's processes
        try:
            with _private.bind_to_loopback(), _environment(short, overwrite=True):
                context = _init("local", own, **options)
        except Exception as error:  # Ray raises whatever its processes met
            ray.shutdown()
            raise ConfigError(_start_failure(error), where="Ray") from error
        yield context


def _init(address: str, environment: Mapping[str, str], **options: Any) -> Any:
    return ray.init(
        address=address,
        log_to_driver=False,
        logging_level=logging.ERROR,
        namespace="uvar_tune",
        runtime_env={
            "env_vars": {**WORKER_ENVIRONMENT, **environment},
            "worker_process_setup_hook": f"{worker_setup_hook.__module__}.{worker_setup_hook.__name__}",
        },
        configure_logging=True,
        **options,
    )


def check_local_ray() -> str:
    """Start and end a local Ray, as `doctor` does; what it is in words.

    Raises:
        ConfigError: it does not start; the message names the cause.
    """
    with ray_cluster():
        return f"Ray {ray.__version__} starts: {describe_cluster()}"


def _start_failure(error: Exception) -> str:
    """One line on why a local Ray does not start."""
    text = str(error)
    if isinstance(error, PermissionError) or "Permission denied" in text:
        path = getattr(error, "filename", None) or text
        return f"a local Ray cannot write {path}: set HOME and TMPDIR to writable directories"
    if "AF_UNIX" in text:
        return f"TMPDIR is too long for Ray's sockets ({first_line(error)}): set RAY_TMPDIR to a short path"
    if "timed out" in text.lower() or "timeout" in text.lower() or "failed to start" in text.lower():
        return f"a local Ray does not start ({first_line(error)}): is this machine overloaded or short of memory?"
    return f"a local Ray does not start: {first_line(error)}"


@contextlib.contextmanager
def _temp_dir() -> Iterator[Path | None]:
    """A short private directory for Ray's sockets and logs if the default one is too long or not writable.

    Raises:
        ConfigError: no short directory is writable.
    """
    default = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")
    if len(str(default.absolute())) <= _MAX_TEMP_DIR and os.access(_existing(default / "ray"), os.W_OK | os.X_OK):
        yield None
        return
    for parent in _TEMP_DIRS:
        try:
            directory = Path(tempfile.mkdtemp(prefix="ray-", dir=parent))
        except OSError:
            continue
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        return
    raise ConfigError(
        f"Ray's sockets need a writable directory of at most {_MAX_TEMP_DIR} characters, and {default} is none",
        where="TMPDIR",
        nearest="RAY_TMPDIR=DIRECTORY",
    )


def _existing(path: Path) -> Path:
    """The path, or its nearest parent that exists."""
    return next((parent for parent in (path, *path.parents) if parent.exists()), Path("/"))


@contextlib.contextmanager
def _auth_token() -> Iterator[None]:
    """Have Ray find a token that only this user reads. Ray itself writes one that everybody on the machine reads.

    The token is kept in `~/.ray/auth_token`, where Ray's own commands look for it, else in the environment.
    """
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token" or _private.has_auth_token():
        yield
        return
    token = secrets.token_hex(32)
    environment: dict[str, str] = {}
    try:
        path = Path.home() / ".ray" / "auth_token"
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(token)
    except (OSError, RuntimeError):  # HOME is not writable, or unknown
        environment["RAY_AUTH_TOKEN"] = token
    _private.reload_auth_token()
    with _environment(environment, overwrite=True):
        yield


@contextlib.contextmanager
def _environment(values: Mapping[str, str], *, overwrite: bool = False) -> Iterator[None]:
    """Context in which environment variables of this process are set.

    Args:
        values: variable → value.
        overwrite: whether variables that the user has set get the new value.
    """
    previous = {name: os.environ.get(name) for name in values}
    os.environ.update({name: value for name, value in values.items() if overwrite or previous[name] is None})
    try:
        yield
    finally:
        for name, value in previous.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _no_proxy(hosts: list[str]) -> dict[str, str]:
    """Variables that keep requests to this machine and to these hosts away from HTTP proxies; they carry Ray's
    token.
    """
    own = ["localhost", "127.0.0.1", "::1", socket.gethostname(), ray.util.get_node_ip_address(), *hosts]
    configured = [host.strip() for name in ("no_proxy", "NO_PROXY") for host in os.environ.get(name, "").split(",")]
    value = ",".join(dict.fromkeys(host for host in (*configured, *own) if host))
    return {"no_proxy": value, "NO_PROXY": value}


def _host(address: str) -> str:
    """The host of HOST:PORT, or of a URL."""
    return address.rpartition("//")[2].rpartition(":")[0].strip("[]")


def _node_hosts() -> list[str]:
    return [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]]


@contextlib.contextmanager
def _quiet_ray() -> Iterator[None]:
    """Context without Ray's warnings: the commands report what matters."""
    ray_logger = logging.getLogger("ray")
    level = ray_logger.level
    with warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning):
            warnings.filterwarnings("ignore", category=category, module="ray")
        ray_logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            ray_logger.setLevel(level)


def _free_port() -> int:
    """A port for the dashboard. The first candidate follows the process id, so that two that start at once differ."""
    first = 8265 + os.getpid() % 500
    for port in range(first, first + 500):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ConfigError("no port is free for Ray's dashboard", where="this machine")


def _endpoints(head_timeout_sec: float) -> list[Endpoint]:
    """Where Ray listens whatever happens to trials: its head, and its raylet on this node."""
    context = ray.get_runtime_context()
    [node] = [node for node in ray.nodes() if node["NodeID"] == context.get_node_id()]
    raylet = f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
    return [
        Endpoint("Ray's head", context.gcs_address, head_timeout_sec),
        Endpoint("Ray's raylet on this node", raylet, 0.0),
    ]


def _check_state_api(has_dashboard: bool) -> None:
    """Without the State API the placement group of a stopped trial is never freed and the study would hang.

    A dashboard that has just been started, or whose machine is busy, gets a minute to answer.

    Raises:
        ConfigError: there is no State API.
    """
    from ray.util.state import list_nodes
    from ray.util.state.exception import RayStateApiException

    deadline = time.monotonic() + (_DASHBOARD_SEC if has_dashboard else 0)
    while True:
        try:
            list_nodes(limit=1, timeout=30, raise_on_missing_output=False)
            return
        except (RayStateApiException, OSError, RuntimeError) as error:
            if time.monotonic() >= deadline:
                raise ConfigError(
                    "this Ray cluster runs without its dashboard, whose State API frees stopped trials: install "
                    "ray[default] and start it with the dashboard on",
                    where="RAY_ADDRESS",
                ) from error
        time.sleep(1)


def run_as_task(config: Config, function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of ``function(*arguments)``, run as one task on a node that has the resources of a worker.

    Raises:
        UvarError: raised by the function.
        InfrastructureError: the process that ran it was lost.
    """
    run = config.run
    task = ray.remote(
        num_cpus=run.cpus_per_worker,
        num_gpus=run.gpus_per_worker,
        max_retries=2,
        runtime_env=task_runtime_env(),
    )(function)
    try:
        return ray.get(task.remote(*arguments))
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, UvarError) else error) from None
    except ray.exceptions.RayError as error:
        raise InfrastructureError(
            f"the shared artifacts of the study were not made: {first_line(error)} The same command continues"
        ) from error


def check_shared_filesystem(directory: Path) -> None:
    """Check that every node reads what the driver writes below ``run.root``.

    Raises:
        ConfigError: a node does not; it is named.
    """
    nodes = _living_nodes()
    if len(nodes) < 2:
        return
    token = uuid.uuid4().hex
    probe = directory / f".probe-{token}"
    probe.write_text(token, encoding="utf-8")
    try:
        references = {node: _submit_probe(node, probe) for node in nodes}
        for node, reference in references.items():
            try:
                content = _probe_content(node, reference, probe)
            except ray.exceptions.RayError as error:
                if node not in _living_nodes():
                    continue  # it has left; the nodes of a trial are checked again when it starts
                raise ConfigError(
                    f"node {nodes[node]} does not read {directory} ({first_line(error)})", where="run.root"
                ) from None
            if content != token:
                raise ConfigError(
                    f"node {nodes[node]} does not see {directory}: it must be a path that all nodes share",
                    where="run.root",
                )
    finally:
        probe.unlink()


def _living_nodes() -> dict[str, str]:
    """Node id → address."""
    return {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}


def _submit_probe(node: str, probe: Path) -> ray.ObjectRef:
    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    task = ray.remote(num_cpus=0, runtime_env=task_runtime_env(), scheduling_strategy=strategy)(_read_probe)
    return task.remote(str(probe))


def _probe_content(node: str, reference: ray.ObjectRef, probe: Path) -> Any:
    """What the node read. A raylet learns of a new node a moment after the head, and refuses its tasks until then."""
    deadline = time.monotonic() + _NEW_NODE_SEC
    while True:
        try:
            return ray.get(reference, timeout=_READ_SEC)
        except ray.exceptions.TaskUnschedulableError:
            if time.monotonic() >= deadline or node not in _living_nodes():
                raise
        time.sleep(0.5)
        reference = _submit_probe(node, probe)


def _read_probe(path: str) -> str | None:
    return Path(path).read_text(encoding="utf-8") if Path(path).exists() else None
