"""What a process does whose head nobody serves any more, with a listener in its place."""

from __future__ import annotations

import resource
import socket
import subprocess
import sys
import threading

import pytest

from tests.helpers.commands import environment, free_port
from uvar_tune.ray_backend.health import Endpoint, wait_for_port

WAITS = """
import sys, time
from uvar_tune.ray_backend.health import Endpoint, RayHealthMonitor, abort_process
with RayHealthMonitor(Endpoint("Ray's head", sys.argv[1], float(sys.argv[2])), report=abort_process):
    print("watching", flush=True)
    sys.stdin.read()
print("left in order", flush=True)
"""


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def watching(listener: socket.socket, timeout_sec: float) -> subprocess.Popen:
    address = "{}:{}".format(*listener.getsockname())
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS, address, str(timeout_sec)],
        env=environment(),
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout.readline() == "watching\n"
    listener.accept()  # it has looked once
    return process


def test_it_ends_with_one_line_when_the_head_is_gone(listener):
    process = watching(listener, 0)
    listener.close()
    assert process.wait(timeout=60) == 1  # although its input is still open
    out, err = process.communicate()
    assert out == ""
    assert (
        err.startswith("error: Ray's head at 127.0.0.1:")
        and err.count("\n") == 1
        and "the same command continues" in err
    )


def test_it_ends_also_where_nobody_takes_the_line(listener):
    """Standard error on a full disk, which may be what took Ray down."""
    address = "{}:{}".format(*listener.getsockname())
    with open("/dev/full", "w", encoding="utf-8") as full:
        process = subprocess.Popen(
            [sys.executable, "-c", WAITS, address, "0"],
            env=environment(),
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=full,
        )
    assert process.stdout.readline() == "watching\n"
    listener.accept()
    listener.close()
    assert process.wait(timeout=60) == 1
    process.communicate()


def test_process_without_sockets_learns_nothing(listener):
    """Which is no reason to end a study."""
    place = Endpoint("Ray's head", "{}:{}".format(*listener.getsockname()), 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert place.is_reachable()
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        assert place.is_reachable()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    listener.close()
    assert not place.is_reachable()


def test_head_that_returns_in_time_is_no_fault(listener):
    process, place = watching(listener, 60), listener.getsockname()
    listener.close()
    with socket.create_server(place) as again:
        again.accept()
        out, err = process.communicate("", timeout=60)
    assert (process.returncode, out, err) == (0, "left in order\n", "")


def test_a_head_that_comes_late_is_waited_for():
    with socket.socket() as late:
        late.bind(("127.0.0.1", 0))
        begun = threading.Timer(1.5, late.listen)
        begun.start()
        wait_for_port("{}:{}".format(*late.getsockname()), 30)
        assert begun.finished.is_set()


@pytest.mark.parametrize(
    "address, error, said",
    [
        ("127.0.0.1:{port}", ConnectionError, "Connection refused"),
        ("nobody.invalid:{port}", ConnectionError, "not known|resolution|address associated"),
        ("127.0.0.1:head", ValueError, "head"),
    ],
)
def test_address_without_a_head_is_recognised(address, error, said):
    with pytest.raises(error, match=said):
        wait_for_port(address.format(port=free_port()), 0)


def test_where_to_find_a_head_is_left_to_ray():
    wait_for_port("auto", 0)
