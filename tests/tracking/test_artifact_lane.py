"""Metrics, parameters and tags never wait for artifacts, on a real `mlflow server`."""

import pytest

from tests.helpers.mlflow_server import MLflow
from tests.helpers.mlflow_store import MLflowStore
from uvar_tune.tracking import MLflowTracker, Outbox

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = MLflow(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def log_trial(tmp_path, server):
    """Log a trial to an experiment with this artifact location; (store, study, outbox, whether all was delivered)."""
    store = MLflowStore(tmp_path)
    store.uri = server.uri

    def log(study: str, artifact_location: str | None = None):
        if artifact_location:
            store.client.create_experiment(study, artifact_location=artifact_location)
        outbox = tmp_path / study / "mlflow"
        tracker = MLflowTracker(
            tracking_uri=server.uri, experiment=study, study=study, artifact_root=tmp_path, outbox_dir=outbox
        )
        directory = store.trial(study, 0)
        tracker.start_study({"study.trials": 2}, {})
        tracker.log_artifact(None, directory / "config.yaml", "")
        tracker.start_trial(0, directory, {"loss.lambda_1": 0.5}, {}, name="t000", phase="search")
        metrics_log = store.write(study, 0, range(3))
        metrics_log.metrics(64, {"not a (valid) key": 1.0, "kid": 2.0})
        (directory / "samples" / "000640.png").write_bytes(b"png")
        tracker.finish_trial(0, "FINISHED", {"fid": 3.0})
        tracker.finish_study("FINISHED")
        return store, Outbox(outbox), tracker.close(60)

    return log


def assert_metadata_complete(store, study):
    [run_id] = store.runs("uvar.trial", f"{study}/0")
    data = store.client.get_run(run_id).data
    assert data.metrics == {"loss/total": 1 / 3, "optimizer/grad_norm": 4.0, "kid": 2.0, "fid": 3.0}
    assert data.params == {"loss.lambda_1": "0.5"} and store.status(run_id) == "FINISHED"
    return run_id


def test_refused_metric_leaves_its_batch(log_trial, log_lines):
    store, outbox, delivered = log_trial("refused")
    run_id = assert_metadata_complete(store, "refused")
    assert delivered and store.artifacts(run_id) == {"config.yaml", "samples/000640.png"}
    assert len(log_lines) == 1 and "refuses metric 'other/not a (valid) key' of trial 0" in log_lines[0]
    assert "not a (valid) key" in (outbox.directory / "dead_letters.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("study", "location", "reason"),
    [
        ("bucket", "s3://no-such-bucket/artifacts", "No module named 'boto3'"),
        ("server-path", "/no-such-directory/of-the-server/1", "does not exist on this machine"),
    ],
)
def test_metadata_does_not_wait_for_artifacts(log_trial, log_lines, study, location, reason):
    if study == "bucket":
        _require_missing("boto3")
    store, outbox, delivered = log_trial(study, location)
    assert_metadata_complete(store, study)
    assert not delivered and outbox.pending() == (0, 0, 3)
    lines = [line for line in log_lines if "artifact store" in line]
    assert len(lines) == 1 and reason in lines[0] and "metrics and parameters are not affected" in lines[0]
    assert "not sent: 3 artifacts" in log_lines[-1]


def _require_missing(package: str) -> None:
    try:
        __import__(package)
    except ImportError:
        return
    pytest.skip(f"{package} is installed")
