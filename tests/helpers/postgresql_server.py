"""A real PostgreSQL for tests: a private cluster on the loopback interface, of Debian's package."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.commands import free_port


def programs() -> Path:
    """Directory of the newest server's programs; skips if there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("no PostgreSQL server here (/usr/lib/postgresql/*/bin; Debian's package postgresql)")
    pytest.importorskip("psycopg", reason="no PostgreSQL driver here (uvar-tune[postgresql])")
    return found[-1].parent


@contextlib.contextmanager
def running() -> Iterator[str]:
    """The URL of a new cluster; any password is right."""
    place = programs()
    directory = Path(tempfile.mkdtemp(prefix="uvar-postgresql-"))
    as_postgres = {}
    if os.geteuid() == 0:  # the server refuses to run as root
        account = pwd.getpwnam("postgres")
        os.chown(directory, account.pw_uid, account.pw_gid)
        as_postgres = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    port, log = free_port(), directory / "log"

    def call(program: str, *arguments: str) -> None:
        subprocess.run(
            [place / program, *arguments], check=True, cwd=directory, stdout=subprocess.DEVNULL, **as_postgres
        )

    call("initdb", "-D", f"{directory}/data", "--no-sync", "-A", "trust", "-U", "uvar", "-E", "UTF8", "--locale=C")
    options = f"-p {port} -k {directory} -c listen_addresses=127.0.0.1 -c fsync=off -c shared_buffers=16MB"
    call("pg_ctl", "-D", f"{directory}/data", "-l", str(log), "-w", "-o", options, "start")
    try:
        yield f"postgresql://uvar@127.0.0.1:{port}/postgres"
    finally:
        call("pg_ctl", "-D", f"{directory}/data", "-m", "immediate", "-w", "stop")
        shutil.rmtree(directory)


def new_database(url: str, name: str) -> str:
    """An empty database of the cluster at ``url``; its URL for psycopg 3."""
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f'create database "{name}"')
    return url.replace("postgresql://", "postgresql+psycopg://").rpartition("/")[0] + f"/{name}"
