"""Servers that refuse a part of what we send: tags of experiments, models and inputs (older ones), everything."""

import json
import time

import pytest

from tests.helpers.mlflow_server import MLflow
from tests.helpers.mlflow_store import MLflowStore
from tests.helpers.refusing_proxy import RefusingProxy
from tests.helpers.shown_study import ShownStudy
from tests.helpers.small_checkpoint import write_checkpoint
from uvar_tune.tracking import Outbox
from uvar_tune.tracking.saved_view import view_url

pytestmark = pytest.mark.server
TAGS, OLD = {"set-experiment-tag": 403}, {"logged-models": 404, "log-inputs": 404, "outputs": 404}
WRITES = {r"POST .*(create|set-|log-|update|delete|restore)": 403}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = MLflow(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


def deliver(tmp_path, proxy, name, monkeypatch):
    """A study of two trials through the proxy; its outbox."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
    store = MLflowStore(tmp_path)
    store.uri = proxy.uri
    study = ShownStudy(store, name, trials=2).search()
    study.tracker.log_model(0, write_checkpoint(study.files.trial(0), tmp_path / "tokenizer"), {})
    study.tracker.finish_study("FINISHED")
    assert study.tracker.close(60)
    outbox = Outbox(tmp_path / name / "mlflow")
    assert not any(outbox.pending())
    return outbox


def refused(outbox) -> list[str]:
    path = outbox.directory / "dead_letters.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line)["op"] for line in lines]


def test_server_without_experiment_tags_gets_the_runs(tmp_path, server, monkeypatch, log_lines):
    with RefusingProxy(server.port, TAGS) as proxy:
        outbox = deliver(tmp_path, proxy, "tagless", monkeypatch)
        assert refused(outbox) == ["save_view"] and sum("save view" in line for line in log_lines) == 1
        link = view_url(proxy.uri, outbox)
        assert "orderByKey=metrics.%60fid%60" in link and "viewStateShareKey" not in link
        assert len(outbox.load_state().runs) == 4  # study, phase, two trials


def test_older_server_gets_what_it_knows(tmp_path, server, monkeypatch, log_lines):
    with RefusingProxy(server.port, OLD, version="2.9.2") as proxy:
        outbox = deliver(tmp_path, proxy, "older", monkeypatch)
        assert sorted(refused(outbox)) == ["log_artifact", "log_datasets"]  # the model; the rest arrived
        assert len(log_lines) == 2, log_lines
        assert not any("set-experiment-tag" in request and "sharedView" in request for request in proxy.seen)
        assert "viewStateShareKey" not in view_url(proxy.uri, outbox)


def test_read_only_server_is_named_and_caught_up(tmp_path, server, monkeypatch, log_lines):
    with RefusingProxy(server.port, WRITES) as proxy:
        store = MLflowStore(tmp_path)
        tracker = store.tracker("read-only", proxy.uri)
        tracker.start_study({"study.trials": 2}, {})
        deadline = time.monotonic() + 30
        while not log_lines and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(log_lines) == 1 and "may not be written by this user" in log_lines[0]
        assert (
            "the study continues" in log_lines[0]
            and view_url(proxy.uri, Outbox(tmp_path / "read-only" / "mlflow")) is None
        )
        proxy.refused.clear()
        assert tracker.close(60) and "answers again" in log_lines[-1]
