"""`uvar-tune sync`: what is pending, and the rebuild of a whole study."""

import subprocess
import sys

import torch

from tests.helpers.mlflow_store import MLflowStore, record
from tests.helpers.whole_study import CONFIG, content, run_study, sync
from uvar_tune.search.storage import open_storage, verify_directory_owner
from uvar_tune.specs import OutcomeKind, TrialOutcome
from uvar_tune.study_dir import StudyDirectory
from uvar_tune.tracking import Outbox
from uvar_tune.training import save_checkpoint
from uvar_tune.trial.outcome_file import write_outcome
from uvar_tune.trial.trial import write_config


def test_rebuild_equals_the_original(tmp_path):
    """Also from storage and metrics logs alone, without an outbox."""
    store = MLflowStore(tmp_path)
    tracker, checkpoint = run_study(store), tmp_path / "whole" / "trials" / "00000" / "checkpoints" / "000000000640"
    save_checkpoint(
        checkpoint,
        var_state={"weight": torch.ones(2)},
        config={},
        tokenizer={"path": "t", "sha256": "0" * 64},
        training_state={"images": 640},
    )
    tracker.log_artifact(0, checkpoint, "checkpoint")
    assert tracker.close(60)
    before = content(store)
    assert "checkpoint/000000000640/var.safetensors" in before["whole/0"][-1] and "study.yaml" in before["whole"][-1]
    statuses = {
        "whole/0": "FINISHED",
        "whole/1": "KILLED",
        "whole/2": "FAILED",
        "whole/noise/0": "FINISHED",
        "whole search": "FINISHED",
        "whole noise": "FINISHED",
        "whole": "FINISHED",
    }
    assert {name: shown[0] for name, shown in before.items()} == statuses
    for database, lost in (
        ("mlflow.db", None),
        ("second.db", None),
        ("third.db", "outbox.jsonl"),
        ("third.db", "state.json"),
    ):
        store.use(database)
        if lost:
            (tmp_path / "whole" / "mlflow" / lost).unlink()
        done = sync(store, "--rebuild")
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        assert content(store) == before, (database, lost)


def test_rebuild_of_a_partial_outbox(tmp_path):
    """As after `mlflow/` was deleted while the study went on."""
    store = MLflowStore(tmp_path)
    assert run_study(store).close(60)
    before, outbox = content(store), Outbox(tmp_path / "whole" / "mlflow")
    kept = outbox.operations()
    outbox.replace_all([operation for operation in kept if operation.get("number") in (None, 2)])
    store.use("second.db")
    assert sync(store, "--rebuild").returncode == 0
    assert content(store) == before


def test_rebuild_of_a_final_run(tmp_path):
    store, files = MLflowStore(tmp_path), StudyDirectory(tmp_path, "whole-final")
    files.create()
    files.create_or_verify(CONFIG)
    write_config(files.trial(0), CONFIG)
    scores = {"fid": 2.0}
    record(files.trial(0), range(10)).metrics(640, scores)
    point = {"inference.cfg_scale": 1.5}
    outcome = TrialOutcome(
        kind=OutcomeKind.COMPLETE, scores=scores, inference_parameters=point, protocol={"samples": 1000}
    )
    write_outcome(files.trial(0), {"training": 7}, outcome)
    for database in ("mlflow.db", "second.db"):
        store.use(database)
        done = sync(store, "--rebuild", study="whole-final")
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        found = content(store)
        assert {name: shown[0] for name, shown in found.items()} == {
            "whole-final": "FINISHED",
            "whole-final/0": "FINISHED",
        }
        assert found["whole-final/0"][2]["protocol.samples"] == "1000" and len(found["whole-final/0"][1]) == 21
    assert not files.journal.exists()


def test_rebuild_without_storage_changes_nothing(tmp_path):
    store = MLflowStore(tmp_path)
    assert run_study(store).close(60)
    before, outbox = content(store), (tmp_path / "whole" / "mlflow" / "outbox.jsonl").read_bytes()
    verify_directory_owner(
        open_storage(f"journal:{tmp_path / 'whole' / 'optuna.journal'}"), "whole", tmp_path / "whole"
    )
    (tmp_path / "whole" / "optuna.journal").rename(tmp_path / "elsewhere.journal")
    done = sync(store, "--rebuild")
    assert done.returncode == 2 and "does not hold study 'whole'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and content(store) == before
    assert (tmp_path / "whole" / "mlflow" / "outbox.jsonl").read_bytes() == outbox
    assert not (tmp_path / "whole" / "optuna.journal").exists()


def test_moved_root_keeps_its_runs(tmp_path):
    old, new = MLflowStore(tmp_path / "old"), MLflowStore(tmp_path / "new")
    old.root.mkdir()
    assert run_study(old).close(60)
    before = content(old)
    old.root.rename(new.root)
    done = sync(new, "--rebuild")
    assert (
        done.returncode == 1
        and f"below {old.root}, which is gone: if run.root was moved, link the old path" in done.stdout
    )
    old.root.symlink_to(new.root)
    assert sync(new).returncode == 0 and content(new) == before


def test_sync_sends_what_is_pending(tmp_path):
    store = MLflowStore(tmp_path)
    store.uri, uri = "http://127.0.0.1:9", store.uri
    assert not run_study(store).close(60)
    store.uri = uri
    done = sync(store)
    assert done.returncode == 0 and "MLflow is up to date" in done.stdout and done.stderr == ""
    assert sorted(content(store)) == [
        "whole",
        "whole noise",
        "whole search",
        "whole/0",
        "whole/1",
        "whole/2",
        "whole/noise/0",
    ]
    assert len(store.rows(store.runs("uvar.trial", "whole/0")[0])) == 10 * 2 + 2


def test_sync_of_unknown_study_and_absent_server(tmp_path, monkeypatch):
    store = MLflowStore(tmp_path)
    store.uri = "http://ann:s3cret@127.0.0.1:9"
    assert not run_study(store).close(60)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    done = sync(store)
    assert done.returncode == 1 and "They are kept" in done.stdout and "s3cret" not in done.stdout + done.stderr
    command = [sys.executable, "-m", "uvar_tune", "sync", "--study", "whoel", "--root", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "did you mean 'whole'" in done.stderr
