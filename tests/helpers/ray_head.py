"""A real Ray head for tests, as the README starts one: token authentication, jobs submitted to it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.helpers.commands import REPOSITORY, environment

BIN = Path(sys.executable).parent


def free_ports(count: int) -> list[int]:
    """Ports that nobody holds, below Ray's default range of worker ports."""
    found: list[int] = []
    for port in range(6400, 9900):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                found.append(port)
        if len(found) == count:
            return found
    raise OSError("no free port")


class Cluster:
    """A Ray head in a session of its own, with a home directory (and so a token) of its own."""

    def __init__(self, home: Path):
        gcs, dashboard, agent, agent_grpc, client = free_ports(5)
        self.address = f"http://127.0.0.1:{dashboard}"
        credentials = {"HOME": str(home), "RAY_AUTH_MODE": "token"}
        self.joining = {**credentials, "RAY_ADDRESS": f"127.0.0.1:{gcs}"}  # for what is not submitted
        self.environment = environment(**credentials, PATH=f"{BIN}:{os.environ['PATH']}")
        self.environment.pop("PYTHONPATH")  # the job brings the package along in its working directory
        self.ray("get-auth-token", "--generate")
        self.log = (home / "ray.log").open("w")
        self.head = subprocess.Popen(
            [
                BIN / "ray",
                "start",
                "--head",
                "--block",
                "--port",
                str(gcs),
                "--dashboard-port",
                str(dashboard),
                "--dashboard-agent-listen-port",
                str(agent),
                "--dashboard-agent-grpc-port",
                str(agent_grpc),
                "--ray-client-server-port",
                str(client),
                "--min-worker-port",
                "21000",
                "--max-worker-port",
                "21999",
                "--temp-dir",
                str(home / "ray"),
                "--num-cpus",
                "2",
            ],
            env=self.environment,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def ray(self, *arguments: str, timeout: float = 600) -> subprocess.CompletedProcess:
        return subprocess.run(
            [BIN / "ray", *arguments], env=self.environment, timeout=timeout, capture_output=True, text=True
        )

    def submit(
        self, *entrypoint: str, options: tuple[str, ...] = (), timeout: float = 600
    ) -> subprocess.CompletedProcess:
        return self.ray(
            "job",
            "submit",
            "--address",
            self.address,
            "--working-dir",
            str(REPOSITORY),
            *options,
            "--",
            *entrypoint,
            timeout=timeout,
        )

    def wait(self) -> None:
        deadline = time.monotonic() + 120
        while self.ray("job", "list", "--address", self.address).returncode:
            assert time.monotonic() < deadline and self.head.poll() is None, Path(self.log.name).read_text(
                encoding="utf-8"
            )
            time.sleep(1)

    def close(self) -> None:
        listed = subprocess.run(["ps", "-eo", "pid,sid"], capture_output=True, text=True, check=True).stdout
        session = [
            int(pid) for pid, sid in (line.split() for line in listed.splitlines()[1:]) if int(sid) == self.head.pid
        ]
        self.head.terminate()
        self.head.wait(timeout=60)
        for pid in session:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.log.close()


@contextlib.contextmanager
def running(home: Path) -> Iterator[Cluster]:
    """A head that takes jobs, until the block ends."""
    cluster = Cluster(home)
    try:
        cluster.wait()
        yield cluster
    finally:
        cluster.close()
