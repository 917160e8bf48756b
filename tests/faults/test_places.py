"""Disks that are full or cannot be written, damaged checkpoints, two sweeps at once, a storage that is locked or away."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path

import optuna
import pytest

from tests.helpers import postgresql_server
from tests.helpers.faulty_study import images_seen, kill_group, records, values, wait_until
from tests.helpers.small_disk import fill, mounted
from uvar_tune.training import latest_valid

pytestmark = [pytest.mark.ray, pytest.mark.faults]
AWAY_SEC = 20  # how long a storage is locked or away after a trial has ended


@pytest.fixture
def disk(tmp_path, root):
    """A disk of 64 MiB that holds a study and nothing else."""
    with mounted(tmp_path / "disk", "size=64m") as place:
        (place / "cache").symlink_to(root / "cache")
        yield place


@pytest.mark.parametrize("at", ["a checkpoint", "every write"])
def test_the_disk_is_full(begin, cli, disk, undisturbed, cost, at):
    """Room for records and not for a checkpoint; then none at all."""
    process, path, directory = begin("full", root=str(disk))
    wait_until(lambda: images_seen(directory, 1) >= 2000, process)
    checkpoints = directory / "trials" / "00001" / "checkpoints"
    newest = latest_valid(checkpoints, on_skip=lambda path, why: None)
    size = sum(file.stat().st_size for file in newest.iterdir())
    began = time.time()
    filler = fill(disk, size // 2 if at == "a checkpoint" else 0)
    text, _ = process.communicate(timeout=200)
    assert process.returncode == 1, text
    assert text.rstrip().splitlines()[-1].startswith("error: ") and "No space left on device. Free some space" in text
    assert "Traceback" not in text
    damaged = []
    latest_valid(checkpoints, on_skip=lambda path, why: damaged.append((path, why)))
    assert not damaged
    filler.unlink()
    again = cli("sweep", path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert values(disk, "full") == undisturbed
    cost(f"the disk full at {at}", directory, 1, began, "the sweep ends; with room, the same command continues")


@pytest.mark.parametrize(
    "case",
    [
        "a file in the way of run.root",
        "a file in the way of the study",
        "a file in the way of the cache",
        "a disk mounted read-only",
    ],
)
def test_a_directory_that_cannot_be_written(cli, space, tmp_path, case):
    place = tmp_path / "place"
    with contextlib.ExitStack() as stack:
        if case == "a disk mounted read-only":
            stack.enter_context(mounted(place, "size=1m,ro"))
        else:
            blocked = {
                "a file in the way of run.root": place,
                "a file in the way of the study": place / "blocked",
                "a file in the way of the cache": place / "cache",
            }[case]
            blocked.parent.mkdir(exist_ok=True)
            blocked.write_text("")
        done = cli("sweep", space(study={"name": "blocked"}, run={"root": str(place)}), timeout=120)
    assert done.returncode == 2, done.stdout + done.stderr
    assert (
        len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: run.root: ") and str(place) in done.stderr
    )


def test_the_newest_checkpoint_is_truncated(begin, root, cli, undisturbed, cost):
    process, path, directory = begin("truncated")
    wait_until(lambda: images_seen(directory, 1) >= 2000, process)
    began = time.time()
    kill_group(process)
    checkpoints = sorted((directory / "trials" / "00001" / "checkpoints").iterdir())
    sound, newest = [place for place in checkpoints if place.name.isdecimal()][-2:]
    weights = newest / "var.safetensors"
    with weights.open("r+b") as handle:
        handle.truncate(weights.stat().st_size // 2)
    again = cli("sweep", path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"checkpoint {newest.name} is not used: var.safetensors has" in again.stdout
    assert [record["images"] for record in records(directory, 1) if record["kind"] == "resumed"] == [int(sound.name)]
    assert values(root, "truncated") == undisturbed
    cost("the newest checkpoint truncated", directory, 1, began, "the one before it is used, and said so", intervals=2)


def test_two_sweeps_are_started_on_one_study(begin, root, undisturbed):
    first, _, directory = begin("twice")
    second, _, _ = begin("twice")
    wait_until(lambda: first.poll() is not None or second.poll() is not None)
    loser, winner = (first, second) if first.poll() is not None else (second, first)
    refused, _ = loser.communicate(timeout=60)
    assert loser.returncode == 2, refused
    assert refused.startswith("error: ") and len(refused.splitlines()) == 1
    assert f"is being run by process {winner.pid}" in refused or "is being run by another sweep" in refused
    text, _ = winner.communicate(timeout=400)
    assert winner.returncode == 0, text
    assert values(root, "twice") == undisturbed


def test_one_storage_and_another_directory(begin, cli, space, root, tmp_path, postgresql):
    """Two machines that share a database, and have each a disk of their own."""
    shared = {"UVAR_STORAGE": postgresql_server.new_database(postgresql, "elsewhere")}
    first, path, directory = begin("elsewhere", variables=shared)
    wait_until(lambda: images_seen(directory, 0) > 0, first)
    second = cli("sweep", path, f"run.root={tmp_path / 'second'}", **shared)
    assert second.returncode == 2, second.stdout + second.stderr
    assert second.stderr.startswith("error: run.root: the storage has a study 'elsewhere' whose files are in ")
    assert str(directory) in second.stderr and len(second.stderr.splitlines()) == 1


def hold(directory: Path, process: subprocess.Popen, take, release) -> None:
    """Have the storage away from the middle of the first trial on, until ``AWAY_SEC`` after its end."""
    wait_until(lambda: images_seen(directory, 0) >= 2000, process)
    take()
    try:
        wait_until(lambda: any(record["kind"] == "ended" for record in records(directory, 0)), process)
        ended = time.monotonic()
        wait_until(lambda: time.monotonic() - ended > AWAY_SEC, process)
    finally:
        release()


def test_a_database_is_locked(begin, root, undisturbed, tmp_path):
    url = f"sqlite:///{tmp_path / 'optuna.db'}"
    process, _, directory = begin("locked", variables={"UVAR_STORAGE": url})
    with closing(sqlite3.connect(tmp_path / "optuna.db", isolation_level=None, timeout=60)) as connection:
        hold(directory, process, lambda: connection.execute("begin exclusive"), lambda: connection.execute("rollback"))
    text, _ = process.communicate(timeout=400)
    assert process.returncode == 0, text
    assert text.count("the Optuna storage does not answer") == 1 and "crashed" not in text
    assert values(root, "locked", url=url) == undisturbed


def test_a_database_server_is_away(begin, root, undisturbed, postgresql):
    import psycopg

    url = postgresql_server.new_database(postgresql, "away")
    process, _, directory = begin("away", variables={"UVAR_STORAGE": url})
    with psycopg.connect(postgresql, autocommit=True) as connection:

        def take():
            connection.execute("alter database away with allow_connections false")
            connection.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = 'away'")

        hold(directory, process, take, lambda: connection.execute("alter database away with allow_connections true"))
    text, _ = process.communicate(timeout=400)
    assert process.returncode == 0, text
    assert text.count("the Optuna storage does not answer") == 1 and "crashed" not in text
    assert values(root, "away", url=url) == undisturbed


def test_the_journal_is_locked(begin, root, undisturbed):
    process, _, directory = begin("journal-locked")
    lock = optuna.storages.journal.JournalFileSymlinkLock(str(directory / "optuna.journal"))
    hold(directory, process, lock.acquire, lock.release)
    text, _ = process.communicate(timeout=400)
    assert process.returncode == 0, text
    assert "crashed" not in text
    assert values(root, "journal-locked") == undisturbed
