"""Calls of the tracker neither block nor raise if the server hangs or the disk is full."""

import socket
import threading
import time
from pathlib import Path

import pytest

from tests.helpers.mlflow_store import MLflowStore
from uvar_tune.tracking.outbox import Outbox

REQUEST_SEC = 10  # after which a request to a server that hangs is given up


@pytest.fixture
def hung():
    """The address of a server that accepts connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(128)
        yield f"http://ann:s3cret@127.0.0.1:{server.getsockname()[1]}"


def test_calls_do_not_block_on_a_hung_server(tmp_path, hung, log_lines):
    store = MLflowStore(tmp_path)
    store.trial("s", 0)
    threads, began, longest = threading.active_count(), time.monotonic(), 0.0
    tracker = store.tracker("s", hung)
    for i in range(300):
        each = time.monotonic()
        tracker.start_trial(i, store.trial("s", 0), {"loss.lambda_1": i}, {})
        tracker.log_study_metrics({"best/fid": 1.0 * i})
        tracker.log_artifact(i, store.trial("s", 0) / "config.yaml", "report")
        tracker.finish_trial(i, "FINISHED", {"fid": 1.0})
        assert tracker.run_id(i) is None
        longest = max(longest, time.monotonic() - each)
    assert longest < REQUEST_SEC and time.monotonic() - began < 3 * REQUEST_SEC
    assert threading.active_count() <= threads + 1  # one thread delivers
    assert not tracker.close(0.5)
    operations, _, _ = Outbox(tmp_path / "s" / "mlflow").pending()
    assert operations == 4 * 300 and "1,200 operations" in log_lines[-1] and "s3cret" not in "".join(log_lines)


def test_calls_do_not_raise(tmp_path, log_lines):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "mlflow").write_text("a file where the directory should be")
    store = MLflowStore(tmp_path)
    tracker = store.tracker("s", "http://127.0.0.1:9")
    tracker.start_study({"a": Path("/x"), "b": {1, 2}}, {"c": object()})
    tracker.log_study_metrics({"best/fid": Path("no number")})
    assert any("cannot be written" in line for line in log_lines)
    assert not tracker.close(5)


def test_operation_buffer_is_bounded(tmp_path):
    (tmp_path / "mlflow").write_text("a file where the directory should be")
    outbox = Outbox(tmp_path / "mlflow")
    for i in range(10_500):
        assert outbox.append({"op": "metrics", "i": i})
    (tmp_path / "mlflow").unlink()
    assert outbox.flush() is None
    found = [operation["i"] for operation, _ in outbox.read(0)]
    assert found == list(range(500, 10_500))
