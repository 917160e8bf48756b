"""The tracker on a real MLflow SQLite store."""

import dataclasses
import math
import time

from tests.helpers.mlflow_store import expected, query
from uvar_tune.tracking import run_ids
from uvar_tune.tracking.metrics_log import MetricsLog
from uvar_tune.tracking.mlflow_client import MLflowExperiment
from uvar_tune.tracking.outbox import Outbox


def one_trial(store, study, points=range(5)):
    """A study of one trial, tracked as the driver does it."""
    metrics_log = store.write(study, 0, points)
    directory = store.trial(study, 0)
    tracker = store.tracker(study)
    tracker.start_study({"study.trials": 2, "tokenizer.scales": [1, 2]}, {"uvar.commit": "abc"})
    tracker.start_trial(0, directory, {"loss.lambda_1": 0.5, "evaluation.samples": 400}, {"uvar.kind": "baseline"})
    return tracker, metrics_log, directory


def test_study_and_trial(store, log_lines):
    tracker, metrics_log, directory = one_trial(store, "plain")
    metrics_log.metrics(640, {"fid": 3.0, "kid": math.nan})
    metrics_log.event("score", images=640, cfg_scale=1.5, seeds="selection", fid=3.5)
    (directory / "samples" / "000640.png").write_bytes(b"png")
    checkpoint = directory / "checkpoints" / "000640"
    checkpoint.mkdir(parents=True)
    (checkpoint / "var.safetensors").write_bytes(b"weights")
    tracker.finish_trial(0, "FINISHED", {"fid": 3.0, "recall": 0.5}, {"inference.cfg_scale": 1.5})
    tracker.log_artifact(0, checkpoint, "checkpoint")
    tracker.log_artifact(None, directory / "config.yaml", "report")
    tracker.log_study_metrics({"best/fid": 3.0})
    tracker.finish_study("FINISHED")
    assert tracker.close(60) and log_lines == []
    [parent], [child] = store.study_runs("plain"), store.runs("uvar.trial", "plain/0")
    assert (tracker.run_id(None), tracker.run_id(0)) == (parent, child) and run_ids(
        store.root / "plain" / "mlflow"
    ) == {0: child}
    assert [row for row in store.rows(child) if row[0] in ("loss/total", "optimizer/grad_norm")] == expected(range(5))
    assert {row for row in store.rows(child) if row[1] >= 640} == {
        ("fid", 640, 3.0),
        ("recall", 640, 0.5),
    }
    assert store.query("select count(*) from metrics where run_uuid = ? and is_nan", child) == [(0,)]
    assert store.rows(parent) == [("best/fid", 0, 3.0)]
    assert store.params(parent) == {"study.trials": "2", "tokenizer.scales": "[1, 2]"}
    assert store.params(child) == {"loss.lambda_1": "0.5", "evaluation.samples": "400", "inference.cfg_scale": "1.5"}
    tags = store.tags(child)
    assert (
        tags["mlflow.parentRunId"] == parent and tags["mlflow.runName"] == "trial 0" and tags["uvar.kind"] == "baseline"
    )
    assert store.artifacts(child) == {
        "config.yaml",
        "samples/000640.png",
        "scores_over_cfg.json",
        "checkpoint/000640/var.safetensors",
    }
    assert store.artifacts(parent) == {"report/config.yaml"}
    assert store.status(parent) == store.status(child) == "FINISHED"


def test_next_driver_continues_runs_without_outbox(store, log_lines):
    tracker, _, directory = one_trial(store, "again")
    assert tracker.close(60)
    first = store.runs("uvar.trial", "again/0")
    assert store.status(first[0]) == "RUNNING"
    for path in (store.root / "again" / "mlflow").glob("*.json*"):
        path.unlink()
    tracker, _, _ = one_trial(store, "again", range(9))
    tracker.finish_trial(0, "FINISHED")
    assert tracker.close(60)
    assert store.runs("uvar.trial", "again/0") == first and store.rows(first[0]) == expected(range(9))
    assert len(store.study_runs("again")) == 1


def test_changed_parameter_becomes_a_tag(store, log_lines):
    assert one_trial(store, "longer")[0].close(60)
    tracker = store.tracker("longer")
    tracker.start_study({"study.trials": 4, "run.workers": 1}, {})
    assert tracker.close(60) and log_lines == []
    [parent] = store.study_runs("longer")
    assert store.params(parent)["study.trials"] == "2" and store.params(parent)["run.workers"] == "1"
    assert store.tags(parent)["uvar.changed.study.trials"] == "4"


def test_refused_items_block_nothing(store, log_lines):
    tracker, _, directory = one_trial(store, "refused")
    tracker.log_study_metrics({"no(such)key": 1.0})
    tracker.log_artifact(0, directory / "gone.png", "samples")
    tracker.finish_trial(0, "FINISHED", {"fid": 1.0})
    assert tracker.close(60)
    assert len(log_lines) == 2 and "metrics" in log_lines[0] and "gone.png is gone" in log_lines[1]
    assert len((store.root / "refused" / "mlflow" / "dead_letters.jsonl").read_text().splitlines()) == 2
    assert store.status(store.runs("uvar.trial", "refused/0")[0]) == "FINISHED"


def test_invalid_operations_are_dead_letters(store, log_lines):
    outbox = Outbox(store.root / "nonsense" / "mlflow")
    for operation in (
        {"op": "log_study_metrics", "time": 1.0, "values": {"best/fid": "no number"}},
        {"op": "dance"},
        {},
        {"op": "start_trial"},
    ):
        outbox.append(operation)
    tracker, _, _ = one_trial(store, "nonsense")
    tracker.finish_trial(0, "FINISHED")
    assert tracker.close(60) and len(log_lines) == 4
    assert store.rows(store.runs("uvar.trial", "nonsense/0")[0]) == expected(range(5))
    assert len((store.root / "nonsense" / "mlflow" / "dead_letters.jsonl").read_text().splitlines()) == 4


def test_second_tracker_leaves_delivery_to_the_first(store, log_lines):
    tracker, _, directory = one_trial(store, "shared")
    while tracker.run_id(0) is None:
        tracker._thread.join(0.05)
    report = store.tracker("shared")
    report.start_study({}, {})
    report.log_artifact(None, directory / "config.yaml", "report")
    assert report.close(60)
    [parent] = store.study_runs("shared")
    assert store.artifacts(parent) == {"report/config.yaml"} and store.status(parent) == "RUNNING"
    assert tracker.close(60) and log_lines == []


def test_equal_names_below_two_roots_are_separate(store, log_lines):
    assert one_trial(store, "apart")[0].close(60)
    elsewhere = type(store)(store.root / "elsewhere")
    elsewhere.uri = store.uri
    assert one_trial(elsewhere, "apart")[0].close(60)
    assert len(store.study_runs("apart")) == len(store.runs("uvar.trial", "apart/0")) == 2


def test_invalid_metrics_log_blocks_nothing(store, log_lines):
    tracker, _, directory = one_trial(store, "broken")
    store.write("broken", 1, range(3))
    tracker.start_trial(1, store.trial("broken", 1), {}, {})
    with (directory / "metrics.jsonl").open("a") as handle:
        handle.write("not json\n")
    tracker.finish_trial(1, "FINISHED")
    assert tracker.close(60)
    assert len(log_lines) == 1 and "metrics.jsonl" in log_lines[0]
    assert store.rows(store.runs("uvar.trial", "broken/1")[0]) == expected(range(3))


def test_unreadable_metrics_log_is_sent_later(store, log_lines):
    """Any error of the disk will do; a directory in the record's store is one."""
    directory = store.trial("unread", 0)
    (directory / "metrics.jsonl").mkdir()
    tracker = store.tracker("unread")
    tracker.start_study({}, {})
    tracker.start_trial(0, directory, {}, {})
    deadline = time.monotonic() + 60
    while not log_lines and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(log_lines) == 1 and "fails with IsADirectoryError" in log_lines[0]
    (directory / "metrics.jsonl").rmdir()
    store.write("unread", 0, range(3))
    assert tracker.close(60)
    assert store.rows(store.runs("uvar.trial", "unread/0")[0]) == expected(range(3))


def connection(store):
    return MLflowExperiment(store.uri, "uvar_tune", store.root / "mlartifacts")


def test_duplicate_run_is_deleted(store, log_lines):
    tracker, _, _ = one_trial(store, "late")
    assert tracker.close(60)
    [kept] = store.runs("uvar.trial", "late/0")
    outbox = Outbox(store.root / "late" / "mlflow")
    identity = {
        key: value
        for key, value in store.tags(kept).items()
        if key in ("uvar.study", "uvar.level", "uvar.trial", "uvar.fingerprint")
    }
    spare = connection(store).create_run("trial 0", identity, 1)
    outbox.save_state(dataclasses.replace(outbox.load_state(), possibly_duplicated=["0"]))
    assert len(store.runs("uvar.trial", "late/0")) == 2
    tracker = store.tracker("late")
    tracker.finish_trial(0, "FINISHED")
    assert tracker.close(60) and outbox.load_state().possibly_duplicated == []
    assert store.runs("uvar.trial", "late/0") == [kept] and store.rows(kept) == expected(range(5)) and spare != kept


def test_lost_run_is_created_again(store, log_lines):
    assert one_trial(store, "lost")[0].close(60)
    [first] = store.runs("uvar.trial", "lost/0")
    connection(store).delete_run(first)
    store.write("lost", 0, range(5, 8))
    tracker = store.tracker("lost")
    tracker.finish_trial(0, "FINISHED")
    assert tracker.close(60)
    [second] = store.runs("uvar.trial", "lost/0")
    assert second != first and store.rows(second) == expected(range(8))
    assert len(log_lines) == 1 and "lost the run of trial 0" in log_lines[0] and "--rebuild" in log_lines[0]


def test_another_server_gets_all_metrics(store, log_lines, tmp_path):
    assert one_trial(store, "moved")[0].close(60)
    store.write("moved", 0, range(5, 8))
    tracker = store.tracker("moved", f"sqlite:///{tmp_path / 'mlflow.db'}")
    tracker.finish_trial(0, "FINISHED")
    assert tracker.close(60) and "another server" in log_lines[0]
    assert sorted(query(tmp_path / "mlflow.db", "select key, step, value from metrics")) == expected(range(8))
    assert store.rows(store.runs("uvar.trial", "moved/0")[0]) == expected(range(5))


def test_replicate_has_its_own_run(store, log_lines):
    tracker, _, _ = one_trial(store, "phased")
    directory = store.root / "phased" / "confirm" / "00003"
    (directory / "samples").mkdir(parents=True)
    metrics_log = MetricsLog(directory / "metrics.jsonl")
    metrics_log.metrics(64, {"loss/total": 2.0})
    tracker.start_trial("confirm/3", directory, {"loss.lambda_1": 0.5}, {"uvar.phase": "confirm"})
    tracker.finish_trial("confirm/3", "FINISHED", {"fid": 3.0})
    tracker.finish_trial(0, "FINISHED")
    assert tracker.close(60) and log_lines == []
    [parent], [child] = store.study_runs("phased"), store.runs("uvar.trial", "phased/confirm/3")
    assert tracker.run_id("confirm/3") == child and store.status(child) == "FINISHED"
    assert ("loss/total", 64, 2.0) in store.rows(child)
    assert store.tags(child)["mlflow.runName"] == "confirm/3" and store.tags(child)["mlflow.parentRunId"] == parent
    assert run_ids(store.root / "phased" / "mlflow") == {0: store.runs("uvar.trial", "phased/0")[0]}
