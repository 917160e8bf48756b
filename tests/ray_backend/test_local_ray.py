"""A Ray that a study starts: no proxy sees it, a long TMPDIR does not stop it, its token is the user's alone."""

from __future__ import annotations

import json
import os
import socket
import socketserver
import stat
import subprocess
import sys
import threading

import pytest

from tests.helpers.commands import environment

SCRIPT = """
import json, sys, ray
from uvar_tune.ray_backend.cluster import ray_cluster
if sys.argv[1] == "own":
    ray.init(num_cpus=1, include_dashboard=True, log_to_driver=False)
with ray_cluster():
    value = ray.get(ray.remote(num_cpus=0)(lambda: 7).remote())
print(json.dumps([value, ray.is_initialized()]))
"""


class Recorder(socketserver.BaseRequestHandler):
    """An HTTP proxy that refuses every request and keeps what it received."""

    def handle(self):
        self.server.received.append(self.request.recv(65536))
        self.request.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")


@pytest.fixture
def proxy():
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Recorder) as server:
        server.received = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def run(kind: str, **changes: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", SCRIPT, kind]
    return subprocess.run(command, env=environment(**changes), capture_output=True, text=True, timeout=180)


@pytest.mark.ray
def test_proxy_receives_nothing_and_token_is_private(proxy, tmp_path):
    address = f"http://127.0.0.1:{proxy.server_address[1]}"
    proxies = {name: address for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")}
    deep = tmp_path / ("d" * 60)  # Ray's sockets below it would have names beyond the limit of 107 bytes
    deep.mkdir()
    done = run("local", HOME=str(tmp_path), TMPDIR=str(deep), **proxies)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [7, False]
    token = tmp_path / ".ray" / "auth_token"
    assert stat.S_IMODE(os.stat(token).st_mode) == 0o600
    received = b"".join(
        proxy.received
    )  # Ray itself asks for the metadata of a cloud; nothing of the cluster goes there
    assert token.read_bytes() not in received and b"authorization" not in received.lower()
    assert not any(f"//{host}".encode() in received for host in ("127.0.0.1", "localhost", socket.gethostname()))


@pytest.mark.ray
def test_ray_of_the_caller_is_joined_and_stays(tmp_path):
    done = run("own", HOME=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [7, True]


@pytest.mark.ray
def test_directories_that_are_none_do_not_matter(tmp_path):
    file = tmp_path / "file"
    file.write_text("", encoding="utf-8")
    done = run("local", HOME=str(file / "home"), TMPDIR=str(file / "tmp"))
    assert done.returncode == 0 and json.loads(done.stdout.splitlines()[-1]) == [7, False], done.stderr
