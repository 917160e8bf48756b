"""MLflow's own page on a study's database: one worker on the loopback interface, without usage data."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator

from uvar_tune.errors import ConfigError, InfrastructureError
from uvar_tune.io.uri import redact_secrets
from uvar_tune.tracking.saved_view import LOCAL_PORT

HOST = "127.0.0.1"
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",  # why it does not start
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # its consumers are three more processes
}
_START_SEC, _STOP_SEC = 120.0, 10.0
_ERROR = re.compile(r"[\w.]*(Error|Exception): |Error: ")  # the last line of a traceback
_MAX_TRIES = 100  # of ports from `LOCAL_PORT` on


class UIServer:
    """An `mlflow server` for people, running.

    Attributes:
        port: where it listens on 127.0.0.1.
    """

    def __init__(self, process: subprocess.Popen, port: int):
        self._process, self.port = process, port

    def wait(self) -> int:
        """Wait until the server ends; its exit code."""
        return self._process.wait()


@contextlib.contextmanager
def ui_server(tracking_uri: str, port: int | None = None) -> Iterator[UIServer]:
    """MLflow's page for the duration of a ``with`` block; its processes are ended on every way out.

    Args:
        tracking_uri: a database.
        port: to listen on; by default the first free one from 5000 on.

    Raises:
        ConfigError: the port is in use.
        InfrastructureError: the server does not start; the message has its error.
    """
    port = free_port() if port is None else _checked(port)
    arguments = ["server", "--workers", "1", "--host", HOST, "--port", str(port), "--backend-store-uri", tracking_uri]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *arguments],
            env={**os.environ, **_ENVIRONMENT, **_python_path()},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches this process only, which ends the others
        )
        try:
            _wait_until_healthy(process, port, log, tracking_uri)
            yield UIServer(process, port)
        finally:
            _end(process)


def free_port() -> int:
    """The first free port from `LOCAL_PORT` on.

    Raises:
        ConfigError: a hundred of them are in use.
    """
    for port in range(LOCAL_PORT, LOCAL_PORT + _MAX_TRIES):
        if _is_free(port):
            return port
    raise ConfigError(f"ports {LOCAL_PORT} to {LOCAL_PORT + _MAX_TRIES - 1} are in use: give another", where="--port")


def _checked(port: int) -> int:
    if not _is_free(port):
        nearest = next((other for other in range(port + 1, min(port + _MAX_TRIES, 65536)) if _is_free(other)), None)
        raise ConfigError(f"port {port} is in use", where="--port", nearest=nearest and str(nearest))
    return port


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _python_path() -> dict[str, str]:
    """The environment in which the server finds the packages of this process: a virtual environment may be nested."""
    return {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def _wait_until_healthy(process: subprocess.Popen, port: int, log, tracking_uri: str) -> None:
    deadline = time.monotonic() + _START_SEC
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=2):
            return
        time.sleep(0.1)
    log.seek(0)
    lines = [line.strip() for line in log.read().splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR.match(line)]
    reason = redact_secrets((errors or lines or ["without a message"])[-1], tracking_uri)
    ended = "ended at its start" if process.poll() is not None else f"did not answer within {_START_SEC:.0f} s"
    raise InfrastructureError(f"the MLflow server {ended}: {reason}")


def _end(process: subprocess.Popen) -> None:
    """End the server with all its workers: they are one process group."""
    for signal_number, seconds in ((15, _STOP_SEC), (9, _STOP_SEC)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal_number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
