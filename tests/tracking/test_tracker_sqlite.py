"""The sink on a real MLflow SQLite store: what its tables hold afterwards."""

import math
import time

from tests.helpers.mlflow_place import expected, query
from uvar_tune.tracking import known_runs
from uvar_tune.tracking.metrics_log import MetricsLog
from uvar_tune.tracking.mlflow_client import Server
from uvar_tune.tracking.outbox import Outbox


def one_trial(place, study, points=range(5)):
    """A study of one trial, told as the driver tells it; its sink is closed."""
    recorder = place.write(study, 0, points)
    directory = place.trial(study, 0)
    sink = place.sink(study)
    sink.start_study({"study.trials": 2, "tokenizer.scales": [1, 2]}, {"uvar.commit": "abc"})
    sink.watch_trial(0, directory, {"loss.lambda_1": 0.5, "evaluation.samples": 400}, {"uvar.kind": "baseline"})
    return sink, recorder, directory


def test_a_study_and_its_trial(place, said):
    sink, recorder, directory = one_trial(place, "plain")
    recorder.metrics(640, {"fid": 3.0, "kid": math.nan})
    recorder.event("score", images=640, cfg_scale=1.5, seeds="selection", fid=3.5)
    (directory / "samples" / "000640.png").write_bytes(b"png")
    checkpoint = directory / "checkpoints" / "000640"
    checkpoint.mkdir(parents=True)
    (checkpoint / "var.safetensors").write_bytes(b"weights")
    sink.finish_trial(0, "FINISHED", {"fid": 3.0, "recall": 0.5}, {"inference.cfg_scale": 1.5})
    sink.artifact(0, checkpoint, "checkpoint")
    sink.artifact(None, directory / "config.yaml", "report")
    sink.study_metrics({"best/fid": 3.0})
    sink.finish_study("FINISHED")
    assert sink.close(60) and said == []
    [parent], [child] = place.runs("uvar.study", "plain"), place.runs("uvar.trial", "plain/0")
    assert (sink.run_id(None), sink.run_id(0)) == (parent, child) and known_runs(place.root / "plain" / "mlflow") == {
        0: child
    }
    assert [row for row in place.rows(child) if row[0] in ("loss/total", "grad_norm")] == expected(range(5))
    assert {row for row in place.rows(child) if row[1] >= 640} == {
        ("fid", 640, 3.0),
        ("kid", 640, 0.0),
        ("recall", 640, 0.5),
        ("profile/fid", 1500, 3.5),
    }
    assert place.query("select is_nan from metrics where run_uuid = ? and key = 'kid'", child) == [(1,)]
    assert place.rows(parent) == [("best/fid", 0, 3.0)]
    assert place.params(parent) == {"study.trials": "2", "tokenizer.scales": "[1, 2]"}
    assert place.params(child) == {"loss.lambda_1": "0.5", "evaluation.samples": "400", "inference.cfg_scale": "1.5"}
    tags = place.tags(child)
    assert (
        tags["mlflow.parentRunId"] == parent and tags["mlflow.runName"] == "trial 0" and tags["uvar.kind"] == "baseline"
    )
    assert place.artifacts(child) == {"config.yaml", "samples/000640.png", "checkpoint/000640/var.safetensors"}
    assert place.artifacts(parent) == {"report/config.yaml"}
    assert place.status(parent) == place.status(child) == "FINISHED"


def test_the_next_driver_continues_the_runs_also_with_its_spool_lost(place, said):
    sink, _, directory = one_trial(place, "again")
    assert sink.close(60)
    first = place.runs("uvar.trial", "again/0")
    assert place.status(first[0]) == "RUNNING"
    for path in (place.root / "again" / "mlflow").glob("*.json*"):
        path.unlink()
    sink, _, _ = one_trial(place, "again", range(9))
    sink.finish_trial(0, "FINISHED")
    assert sink.close(60)
    assert place.runs("uvar.trial", "again/0") == first and place.rows(first[0]) == expected(range(9))
    assert len(place.runs("uvar.study", "again")) == 1


def test_a_study_made_longer_says_so_by_a_tag(place, said):
    assert one_trial(place, "longer")[0].close(60)
    sink = place.sink("longer")
    sink.start_study({"study.trials": 4, "run.workers": 1}, {})
    assert sink.close(60) and said == []
    [parent] = place.runs("uvar.study", "longer")
    assert place.params(parent)["study.trials"] == "2" and place.params(parent)["run.workers"] == "1"
    assert place.tags(parent)["uvar.changed.study.trials"] == "4"


def test_what_the_server_refuses_holds_up_nothing(place, said):
    sink, _, directory = one_trial(place, "refused")
    sink.study_metrics({"no(such)key": 1.0})
    sink.artifact(0, directory / "gone.png", "samples")
    sink.finish_trial(0, "FINISHED", {"fid": 1.0})
    assert sink.close(60)
    assert len(said) == 2 and "metrics" in said[0] and "gone.png is gone" in said[1]
    assert len((place.root / "refused" / "mlflow" / "rejected.jsonl").read_text().splitlines()) == 2
    assert place.status(place.runs("uvar.trial", "refused/0")[0]) == "FINISHED"


def test_what_is_no_operation_is_put_aside_and_the_rest_goes_on(place, said):
    spool = Outbox(place.root / "nonsense" / "mlflow")
    for operation in (
        {"op": "metrics", "time": 1.0, "values": {"best/fid": "no number"}},
        {"op": "dance"},
        {},
        {"op": "watch"},
    ):
        spool.put(operation)
    sink, _, _ = one_trial(place, "nonsense")
    sink.finish_trial(0, "FINISHED")
    assert sink.close(60) and len(said) == 4
    assert place.rows(place.runs("uvar.trial", "nonsense/0")[0]) == expected(range(5))
    assert len((place.root / "nonsense" / "mlflow" / "rejected.jsonl").read_text().splitlines()) == 4


def test_a_second_sink_of_the_study_leaves_delivery_to_the_first(place, said):
    sink, _, directory = one_trial(place, "shared")
    while sink.run_id(0) is None:
        sink._thread.join(0.05)
    report = place.sink("shared")
    report.start_study({}, {})
    report.artifact(None, directory / "config.yaml", "report")
    assert report.close(60)
    [parent] = place.runs("uvar.study", "shared")
    assert place.artifacts(parent) == {"report/config.yaml"} and place.status(parent) == "RUNNING"
    assert sink.close(60) and said == []


def test_studies_of_one_name_below_two_roots_stay_apart(place, said):
    assert one_trial(place, "apart")[0].close(60)
    elsewhere = type(place)(place.root / "elsewhere")
    elsewhere.uri = place.uri
    assert one_trial(elsewhere, "apart")[0].close(60)
    assert len(place.runs("uvar.study", "apart")) == len(place.runs("uvar.trial", "apart/0")) == 2


def test_a_record_that_cannot_be_read_is_said_and_the_rest_goes_on(place, said):
    sink, _, directory = one_trial(place, "broken")
    place.write("broken", 1, range(3))
    sink.watch_trial(1, place.trial("broken", 1), {}, {})
    with (directory / "metrics.jsonl").open("a") as handle:
        handle.write("not json\n")
    sink.finish_trial(1, "FINISHED")
    assert sink.close(60)
    assert len(said) == 1 and "metrics.jsonl" in said[0]
    assert place.rows(place.runs("uvar.trial", "broken/1")[0]) == expected(range(3))


def test_a_record_that_cannot_be_read_for_a_while_is_sent_when_it_can(place, said):
    """Any error of the disk will do; a directory in the record's place is one."""
    directory = place.trial("unread", 0)
    (directory / "metrics.jsonl").mkdir()
    sink = place.sink("unread")
    sink.start_study({}, {})
    sink.watch_trial(0, directory, {}, {})
    deadline = time.monotonic() + 60
    while not said and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(said) == 1 and "cannot be told for now: IsADirectoryError" in said[0]
    (directory / "metrics.jsonl").rmdir()
    place.write("unread", 0, range(3))
    assert sink.close(60)
    assert place.rows(place.runs("uvar.trial", "unread/0")[0]) == expected(range(3))


def connection(place):
    return Server(place.uri, "uvar_tune", place.root / "mlartifacts")


def test_a_run_made_by_a_request_that_was_answered_too_late_is_removed(place, said):
    sink, _, _ = one_trial(place, "late")
    assert sink.close(60)
    [kept] = place.runs("uvar.trial", "late/0")
    spool = Outbox(place.root / "late" / "mlflow")
    identity = {key: value for key, value in place.tags(kept).items() if key in ("uvar.trial", "uvar.root")}
    spare = connection(place).make("trial 0", identity, 1)
    spool.save({**spool.load(), "uncertain": ["0"]})
    assert len(place.runs("uvar.trial", "late/0")) == 2
    sink = place.sink("late")
    sink.finish_trial(0, "FINISHED")
    assert sink.close(60) and spool.load()["uncertain"] == []
    assert place.runs("uvar.trial", "late/0") == [kept] and place.rows(kept) == expected(range(5)) and spare != kept


def test_a_run_that_the_server_has_lost_is_made_again_from_the_record(place, said):
    assert one_trial(place, "lost")[0].close(60)
    [first] = place.runs("uvar.trial", "lost/0")
    connection(place).delete(first)
    place.write("lost", 0, range(5, 8))
    sink = place.sink("lost")
    sink.finish_trial(0, "FINISHED")
    assert sink.close(60)
    [second] = place.runs("uvar.trial", "lost/0")
    assert second != first and place.rows(second) == expected(range(8))
    assert len(said) == 1 and "lost the run of trial 0" in said[0] and "--rebuild" in said[0]


def test_another_server_gets_the_records_from_their_beginning(place, said, tmp_path):
    assert one_trial(place, "moved")[0].close(60)
    place.write("moved", 0, range(5, 8))
    sink = place.sink("moved", f"sqlite:///{tmp_path / 'mlflow.db'}")
    sink.finish_trial(0, "FINISHED")
    assert sink.close(60) and "another server" in said[0]
    assert sorted(query(tmp_path / "mlflow.db", "select key, step, value from metrics")) == expected(range(8))
    assert place.rows(place.runs("uvar.trial", "moved/0")[0]) == expected(range(5))


def test_a_replicate_of_a_phase_has_a_run_of_its_own(place, said):
    sink, _, _ = one_trial(place, "phased")
    directory = place.root / "phased" / "confirm" / "00003"
    (directory / "samples").mkdir(parents=True)
    recorder = MetricsLog(directory / "metrics.jsonl")
    recorder.metrics(64, {"loss/total": 2.0})
    sink.watch_trial("confirm/3", directory, {"loss.lambda_1": 0.5}, {"uvar.phase": "confirm"})
    sink.finish_trial("confirm/3", "FINISHED", {"fid": 3.0})
    sink.finish_trial(0, "FINISHED")
    assert sink.close(60) and said == []
    [parent], [child] = place.runs("uvar.study", "phased"), place.runs("uvar.trial", "phased/confirm/3")
    assert sink.run_id("confirm/3") == child and place.status(child) == "FINISHED"
    assert ("loss/total", 64, 2.0) in place.rows(child)
    assert place.tags(child)["mlflow.runName"] == "confirm/3" and place.tags(child)["mlflow.parentRunId"] == parent
    assert known_runs(place.root / "phased" / "mlflow") == {0: place.runs("uvar.trial", "phased/0")[0]}
