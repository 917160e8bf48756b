"""The tracker against a real `mlflow server`: not there at the start, hung, killed, started again."""

import signal
import time

import pytest

from tests.helpers.mlflow_server import MLflow
from tests.helpers.mlflow_store import MLflowStore, expected, query

pytestmark = pytest.mark.server


@pytest.fixture
def server(tmp_path):
    (tmp_path / "server").mkdir()
    server = MLflow(tmp_path / "server")
    yield server
    server.kill()


def until(condition):
    while not condition():
        time.sleep(0.1)


def test_absent_hung_and_killed_server(tmp_path, server, monkeypatch, log_lines):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    store = MLflowStore(tmp_path)
    tracker, directory = store.tracker("away", server.uri), store.trial("away", 0)
    tracker.start_study({"study.trials": 2}, {})
    tracker.start_trial(0, directory, {"loss.lambda_1": 0.5}, {})
    store.write("away", 0, range(10))
    until(lambda: log_lines)
    assert len(log_lines) == 1 and "does not answer" in log_lines[0] and tracker.run_id(0) is None

    server.start()
    until(lambda: len(log_lines) == 2)  # it has caught up, reported once
    server.signal(signal.SIGSTOP)
    store.write("away", 1, range(4))
    tracker.start_trial(1, store.trial("away", 1), {}, {})  # its run is requested from a hung server
    store.write("away", 0, range(10, 20))
    until(lambda: len(log_lines) == 3)
    time.sleep(3)  # a further try runs into the hung server
    server.signal(signal.SIGCONT)
    until(lambda: len(log_lines) == 4)
    server.kill()
    store.write("away", 0, range(20, 30))
    (directory / "samples" / "001920.png").write_bytes(b"png")
    tracker.finish_trial(0, "FINISHED", {"fid": 1.0})
    tracker.finish_trial(1, "FAILED")
    tracker.finish_study("FINISHED")
    assert not tracker.close(30)
    assert "uvar-tune sync --study away" in log_lines[-1]

    server.start()
    assert store.tracker("away", server.uri).close(60)
    server.kill()
    database = server.directory / "mlflow.db"
    runs = dict(
        query(
            database,
            "select t.value, r.run_uuid from runs r join tags t on r.run_uuid = t.run_uuid where "
            "t.key = 'uvar.trial' and r.lifecycle_stage = 'active'",
        )
    )
    rows = {
        name: sorted(query(database, "select key, step, value from metrics where run_uuid = ?", run_id))
        for name, run_id in runs.items()
    }
    assert rows == {"away/0": sorted([*expected(range(30)), ("fid", 64 * 29, 1.0)]), "away/1": expected(range(4))}
    active = query(database, "select name, status from runs where lifecycle_stage = 'active' order by name")
    assert active == [("away", "FINISHED"), ("trial 0", "FINISHED"), ("trial 1", "FAILED")]
    assert [path.name for path in (server.directory / "artifacts").rglob("*.png")] == ["001920.png"]
    kept = "".join(path.read_text() for path in (tmp_path / "away" / "mlflow").iterdir())
    shown = query(database, "select value from tags") + query(database, "select value from params")
    assert "s3cret" not in kept + "\n".join(log_lines) + str(shown)
