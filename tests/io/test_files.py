"""Atomic writes and locks: what another process sees, and what a failure leaves."""

import subprocess
import sys

import pytest

from uvar_tune.io.atomic import atomic_path, write_bytes_atomic, write_text_atomic
from uvar_tune.io.hashing import content_hash, file_sha256
from uvar_tune.io.locks import FileLock, LockHeldError, is_locked

HOLDER = """
import sys, time
from uvar_tune.io.locks import FileLock
lock = FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
time.sleep(20)
"""


def test_atomic_write_replaces_or_keeps(tmp_path):
    path = tmp_path / "state.json"
    write_text_atomic(path, "ä")
    write_bytes_atomic(path, "ö".encode())
    with pytest.raises(ZeroDivisionError), atomic_path(path) as staged:
        staged.write_text("half", encoding="utf-8")
        raise ZeroDivisionError
    assert path.read_text(encoding="utf-8") == "ö" and list(tmp_path.iterdir()) == [path]


def test_hashes_known_answers(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert content_hash({"b": 1, "a": [2]}) == content_hash({"a": [2], "b": 1}) != content_hash({"a": [2], "b": 2})


def test_lock_names_holder_and_outlives_no_process(tmp_path):
    path = tmp_path / ".lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        lock = FileLock(path)
        with pytest.raises(LockHeldError, match=f"locked by process {holder.pid} on "):
            lock.acquire(timeout_sec=0.3)
        assert not lock.is_held and is_locked(path)
        holder.kill()
        assert lock.acquire(timeout_sec=10) in (None, f"process {holder.pid} on {lock_host(path)}")
    with pytest.raises(LockHeldError):
        FileLock(path).acquire(timeout_sec=0)
    lock.release()
    assert not is_locked(path) and not is_locked(tmp_path / "nowhere")
    assert FileLock(path).acquire(timeout_sec=0) is None


def lock_host(path):
    return path.read_text(encoding="utf-8").split(" on ")[1]
