"""The storages that the search is tested on: a journal file, SQLite, and a PostgreSQL of the tests' own."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def postgresql():
    """The URL of a private cluster on the loopback interface, made for the session."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("no PostgreSQL server here (/usr/lib/postgresql/*/bin; Debian's package postgresql)")
    pytest.importorskip("psycopg", reason="no PostgreSQL driver here (uvar-tune[postgresql])")
    directory = Path(tempfile.mkdtemp(prefix="uvar-postgresql-"))
    as_postgres = {}
    if os.geteuid() == 0:  # the server refuses to run as root
        account = pwd.getpwnam("postgres")
        os.chown(directory, account.pw_uid, account.pw_gid)
        as_postgres = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    port, log = free_port(), directory / "log"
    programs = found[-1].parent

    def call(program: str, *arguments: str) -> None:
        subprocess.run([programs / program, *arguments], check=True, cwd=directory, stdout=subprocess.DEVNULL, **as_postgres)

    call("initdb", "-D", f"{directory}/data", "--no-sync", "-A", "trust", "-U", "uvar", "-E", "UTF8", "--locale=C")
    options = f"-p {port} -k {directory} -c listen_addresses=127.0.0.1 -c fsync=off -c shared_buffers=16MB"
    call("pg_ctl", "-D", f"{directory}/data", "-l", str(log), "-w", "-o", options, "start")
    try:
        yield f"postgresql://uvar@127.0.0.1:{port}/postgres"
    finally:
        call("pg_ctl", "-D", f"{directory}/data", "-m", "immediate", "-w", "stop")
        shutil.rmtree(directory)


@pytest.fixture(scope="session", params=["journal", "sqlite", "postgresql"])
def storage_url(request, tmp_path_factory) -> str:
    """One storage of each kind for the session; tests tell their studies apart by name."""
    if request.param == "postgresql":
        return request.getfixturevalue("postgresql")
    path = tmp_path_factory.mktemp("storage") / "studies"
    return f"journal:{path}" if request.param == "journal" else f"sqlite:///{path}"


@pytest.fixture
def journal(tmp_path) -> str:
    return f"journal:{tmp_path / 'optuna.journal'}"
