"""What a study starts, Ray with all its processes, or prints a command for, listens on this machine only.

But for the socket at which the ranks of a trial find each other, which is PyTorch's, and listens everywhere while a trial runs.
"""

from __future__ import annotations

import ipaddress
import shlex
import subprocess

import psutil
import pytest

from tests.helpers.commands import end_session, free_port
from tests.helpers.faulty_study import images_seen, wait_until

DASHBOARD = range(8265, 9265)  # where a study looks for a port for Ray's

pytestmark = [pytest.mark.ray, pytest.mark.server, pytest.mark.faults]


def listening(pid: int) -> set[tuple[str, str, int]]:
    """(program, address, port) of every socket on which a process or a descendant of it takes connections."""
    found = set()
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        try:
            found |= {
                (process.name(), *connection.laddr)
                for connection in process.net_connections("inet")
                if connection.status == psutil.CONN_LISTEN
            }
        except psutil.Error:  # it has ended meanwhile
            continue
    return found


def strangers(sockets: set[tuple[str, str, int]]) -> list[tuple[str, str, int]]:
    """Those that another machine can reach."""
    return sorted(one for one in sockets if not ipaddress.ip_address(one[1].removeprefix("::ffff:")).is_loopback)


def test_servers_are_heard_on_this_machine_alone(cli, space, root):
    process = cli.start("sweep", space(study={"name": "bound", "trials": 1}, run={"max_concurrent": 1}))
    try:
        wait_until(lambda: images_seen(root / "bound", 0) > 0, process, timeout=600)
        sockets = listening(process.pid)
        text, _ = process.communicate(timeout=600)
    finally:
        end_session(process)
    assert process.returncode == 0, text
    assert {"gcs_server", "raylet"} <= {program for program, *_ in sockets}
    assert {program for program, *_ in strangers(sockets)} <= {"ray::RayTrainWorker"}
    assert {address for _, address, port in sockets if port in DASHBOARD} == {"127.0.0.1"}
    for prefix in ("MLflow UI:", "Optuna dashboard:"):
        [command] = [line.removeprefix(prefix) for line in text.splitlines() if line.startswith(prefix)]
        port = free_port()
        server = subprocess.Popen(
            ["env", *shlex.split(command), "--port", str(port)],  # it sets variables first
            cwd=cli.cwd,
            start_new_session=True,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_until(
                lambda server=server, port=port: port in {number for *_, number in listening(server.pid)}, server
            )
            assert strangers(listening(server.pid)) == [], prefix
        finally:
            end_session(server)
