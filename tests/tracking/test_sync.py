"""`python -m uvar_tune.sync`: what is left over, and a whole study made anew."""

import subprocess
import sys

import torch
from mlflow_place import Place
from whole_study import content, run_study, sync

from uvar_tune.training import save_checkpoint


def test_a_study_is_made_anew_on_an_empty_server_and_unchanged_on_a_full_one(tmp_path):
    place = Place(tmp_path)
    sink, checkpoint = run_study(place), place.trial("whole", 1) / "checkpoints" / "000000000640"
    save_checkpoint(checkpoint, var_state={"weight": torch.ones(2)}, config={}, tokenizer={"path": "t", "sha256": "0" * 64},
                    training_state={"images": 640})
    sink.artifact(1, checkpoint, "checkpoint")
    assert sink.close(60)
    before = content(place)
    assert "checkpoint/000000000640/var.safetensors" in before["trial 1"][-1]
    assert [before[f"trial {number}"][0] for number in range(3)] == ["FINISHED", "FINISHED", "FAILED"]
    done = sync(place, "--rebuild")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert content(place) == before
    (tmp_path / "mlflow.db").unlink()
    done = sync(place, "--rebuild")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert content(place) == before


def test_what_was_left_over_is_sent_and_then_nothing_is(tmp_path):
    place = Place(tmp_path)
    place.uri, uri = "http://127.0.0.1:9", place.uri
    assert not run_study(place).close(60)
    place.uri = uri
    done = sync(place)
    assert done.returncode == 0 and "MLflow has all" in done.stdout and done.stderr == ""
    assert sorted(content(place)) == ["trial 0", "trial 1", "trial 2", "whole"]
    assert len(place.rows(place.runs("uvar.trial", "whole/0")[0])) == 10 * 2 + 3


def test_an_unknown_study_and_a_server_that_is_away(tmp_path, monkeypatch):
    place = Place(tmp_path)
    place.uri = "http://ann:s3cret@127.0.0.1:9"
    assert not run_study(place).close(60)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place.uri)
    done = sync(place)
    assert done.returncode == 1 and "kept and not sent" in done.stdout and "s3cret" not in done.stdout + done.stderr
    command = [sys.executable, "-m", "uvar_tune.sync", "--study", "whoel", "--root", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "did you mean 'whole'" in done.stderr
