"""What the caller of the sink feels of a server that does not answer, or of a disk that is full: nothing."""

import socket
import threading
import time
from pathlib import Path

import pytest

from tests.helpers.mlflow_place import Place
from uvar_tune.tracking.outbox import Outbox

REQUEST_SEC = 10  # after which a request to a server that hangs is given up


@pytest.fixture
def hung():
    """The address of a server that takes connections and never says a word."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(128)
        yield f"http://ann:s3cret@127.0.0.1:{server.getsockname()[1]}"


def test_no_call_waits_for_a_server_that_hangs(tmp_path, hung, said):
    place = Place(tmp_path)
    place.trial("s", 0)
    threads, began, longest = threading.active_count(), time.monotonic(), 0.0
    sink = place.sink("s", hung)
    for i in range(300):
        each = time.monotonic()
        sink.watch_trial(i, place.trial("s", 0), {"loss.lambda_1": i}, {})
        sink.study_metrics({"best/fid": 1.0 * i})
        sink.artifact(i, place.trial("s", 0) / "config.yaml", "report")
        sink.finish_trial(i, "FINISHED", {"fid": 1.0})
        assert sink.run_id(i) is None
        longest = max(longest, time.monotonic() - each)
    assert longest < REQUEST_SEC and time.monotonic() - began < 3 * REQUEST_SEC
    assert threading.active_count() <= threads + 1  # one thread tells it all
    assert not sink.close(0.5)
    operations, _ = Outbox(tmp_path / "s" / "mlflow").unsent()
    assert operations == 4 * 300 and "1200 operations" in said[-1] and "s3cret" not in "".join(said)


def test_values_that_json_does_not_know_and_a_full_disk_raise_nothing(tmp_path, said):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "mlflow").write_text("a file where the directory should be")
    place = Place(tmp_path)
    sink = place.sink("s", "http://127.0.0.1:9")
    sink.start_study({"a": Path("/x"), "b": {1, 2}}, {"c": object()})
    sink.study_metrics({"best/fid": Path("no number")})
    assert any("cannot be written" in line for line in said)
    assert not sink.close(5)


def test_what_waits_in_memory_is_bounded(tmp_path):
    (tmp_path / "mlflow").write_text("a file where the directory should be")
    spool = Outbox(tmp_path / "mlflow")
    for i in range(10_500):
        assert spool.put({"op": "metrics", "i": i})
    (tmp_path / "mlflow").unlink()
    assert spool.flush() is None
    found = [operation["i"] for operation, _ in spool.after(0)]
    assert found == list(range(500, 10_500))
