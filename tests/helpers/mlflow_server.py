"""A real `mlflow server` for tests: started, hung, killed and started again."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from tests.helpers.commands import free_port


class MLflow:
    """A tracking server of one worker on the loopback interface, in a session of its own."""

    def __init__(self, directory: Path, store: str | None = None):
        self.directory, self.process = directory, None
        self.store = store or f"sqlite:///{directory / 'mlflow.db'}"
        self.port = free_port()
        self.uri = f"http://ann:s3cret@127.0.0.1:{self.port}"

    def start(self):
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--workers",
            "1",
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--backend-store-uri",
            self.store,
            "--artifacts-destination",
            str(self.directory / "artifacts"),
        ]
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.directory / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, env={**os.environ, **quiet}, stdout=log, stderr=log, start_new_session=True
            )
        self.wait()

    def wait(self):
        while True:
            assert self.process.poll() is None, (self.directory / "server.log").read_text()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=1):
                    return
            except OSError:
                time.sleep(0.2)

    def signal(self, number):
        os.killpg(self.process.pid, number)

    def kill(self):
        if self.process is not None and self.process.poll() is None:
            self.signal(signal.SIGKILL)
            self.process.wait()


def query(database: Path, sql: str, *arguments) -> list[tuple]:
    """Rows of MLflow's own SQLite database."""
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as connection:
        return connection.execute(sql, arguments).fetchall()
