"""A Ray that a study starts for itself: heard on this machine alone, its dashboard on a port that is free."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

from uvar_tune.errors import ConfigError


@contextlib.contextmanager
def on_loopback() -> Iterator[None]:
    """While it lasts, a Ray that is started here takes the loopback address for the node's, and its processes listen
    there only.

    Ray has this for systems whose firewall asks about each program that listens elsewhere. It reads the variable when
    it is imported, so that this process, which has imported it, is told besides; Ray's own processes read the variable.
    """
    from ray._private import ray_constants

    variable, usual = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, ray_constants.ENABLE_RAY_CLUSTER
    before = os.environ.get(variable)
    os.environ[variable], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = usual
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


def free_port() -> int:
    """A port for the dashboard of an own Ray. Where to look first follows the process, so that two that start at once
    differ.
    """
    first = 8265 + os.getpid() % 500
    for port in range(first, first + 500):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ConfigError("no port is free for Ray's dashboard", where="this machine")
