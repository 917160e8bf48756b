"""A study end to end by the commands a user types: searched, tracked, reported, exported, repeated."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import optuna
import pytest
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from tests.helpers.commands import TINY
from uvar_tune.bench.search_table import load_table

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def study(root, cluster_cli, tmp_path_factory):
    """(directory, printed text) of a finished study of three trials."""
    path = tmp_path_factory.mktemp("space") / "space.yaml"
    path.write_text(yaml.safe_dump({**TINY, "run": {**TINY["run"], "root": str(root)}}))
    done = cluster_cli("sweep", path)
    assert done.returncode == 0, done.stdout + done.stderr
    return root / "tiny", done.stdout, path


def test_it_ends_with_table_export_and_report(study):
    directory, text, _ = study
    assert "trial 0 (baseline)" in text and "verdict: unconfirmed" in text
    assert "Last result" not in text  # Tune's own lines
    assert "MLflow UI:" in text and "optuna-dashboard" in text and "CPU seconds" in text
    assert (directory / "report" / "report.html").stat().st_size > 10_000
    assert len(list((directory / "report").glob("*.png"))) >= 1
    assert len(list((directory / "export").glob("tiny-*.yaml"))) == 1


def test_each_trial_has_its_files(study):
    directory, _, _ = study
    for number in range(3):
        trial = directory / "trials" / f"{number:05d}"
        assert (trial / "config.yaml").exists() and (trial / "metrics.jsonl").exists()
        assert list((trial / "checkpoints").glob("*/manifest.json")) and list((trial / "samples").glob("*.png"))
    baseline = yaml.safe_load((directory / "trials" / "00000" / "config.yaml").read_text())
    assert baseline["loss"]["lambda_1"] == 0 and baseline["loss"]["lambda_2"] == 0


def test_mlflow_shows_a_parent_and_its_trials(study, root):
    with closing(sqlite3.connect(root / "mlflow.db")) as database:
        rows = database.execute(
            "select r.name, r.status, r.run_uuid from runs r join tags t on t.run_uuid = r.run_uuid "
            "join tags l on l.run_uuid = r.run_uuid and l.key = 'uvar.level' and l.value = 'study' "
            "where t.key = 'uvar.study' and t.value = 'tiny'"
        ).fetchall()
        children = database.execute(
            "select r.status, r.run_uuid from runs r join tags t on t.run_uuid = r.run_uuid "
            "where t.key = 'uvar.trial' and t.value like 'tiny/%'"
        ).fetchall()
        assert [status for status, _ in children] == ["FINISHED"] * 3
        for _, run in children:
            keys = {key for (key,) in database.execute("select distinct key from metrics where run_uuid = ?", (run,))}
            assert {
                "loss/total",
                "loss/ce",
                "loss/second_order",
                "loss/semantic_entropy",
                "fid",
                "nll_token",
                "code_usage",
                "conditional_accuracy",
            } <= keys
            repeated = database.execute(
                "select count(*) - count(distinct key || '/' || step) from metrics where run_uuid = ?", (run,)
            ).fetchone()[0]
            assert repeated == 0
            params = dict(database.execute("select key, value from params where run_uuid = ?", (run,)))
            assert {"loss.lambda_1", "loss.reference", "training.images", "evaluation.samples"} <= set(params)
            assert params["protocol.samples"] == "100" and {"protocol.reference", "seed.sampling-b"} <= set(params)
    assert rows


def test_same_command_prints_the_table(study, cli):
    _, _, path = study
    again = cli("sweep", path)
    assert again.returncode == 0 and "all trials have finished" in again.stdout and "exported to" in again.stdout
    other = cli("sweep", path, "training.learning_rate=0.001")
    assert other.returncode == 2
    assert "training.learning_rate was 0.002, is 0.001" in other.stderr and len(other.stderr.strip().splitlines()) == 1


def test_report_and_export_commands(study, cli, root, tmp_path):
    report = cli("report", "--study", "tiny", "--root", str(root), "--out", str(tmp_path / "report"))
    assert report.returncode == 0, report.stderr
    assert (tmp_path / "report" / "report.html").exists()
    made = cli(
        "export",
        "--study",
        "tiny",
        "--root",
        str(root),
        "--top",
        "2",
        "--out",
        str(tmp_path / "export"),
        "--unconfirmed",
    )
    assert made.returncode == 0, made.stderr
    files = [Path(line) for line in made.stdout.split()]
    assert len(files) == 2
    refused = cli("export", "--study", "tiny", "--root", str(root), "--out", str(tmp_path / "export"))
    assert refused.returncode == 2 and "--unconfirmed" in refused.stderr
    tree = yaml.safe_load(files[0].read_text())
    assert tree["verdict"] == "unconfirmed" and "space" not in tree
    assert {"source", "versions", "seeds", "mlflow_run", "data_sha256", "scores"} <= set(tree["provenance"])
    assert tree["provenance"]["mlflow_run"]


def test_replay_reproduces_scores_and_final_run_ends(study, cli, cluster_cli):
    directory, _, _ = study
    export = next((directory / "export").glob("*.yaml"))
    replay = cli("train", export, "--replay")
    assert replay.returncode == 0, replay.stdout + replay.stderr
    assert "every number is the same, bit for bit" in replay.stdout
    two = cluster_cli("train", export, "--name", "two-workers", "run.workers=2", "training.images=1920")
    assert two.returncode == 0, two.stdout + two.stderr
    assert "checkpoints in" in two.stdout


def test_generate_from_a_trial(study, cli, tmp_path):
    directory, _, _ = study
    made = cli(
        "generate",
        directory / "trials" / "00000",
        "--label",
        "3",
        "--count",
        "4",
        "--cfg-scale",
        "2",
        "--out",
        tmp_path / "three.png",
    )
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "three.png").read_bytes().startswith(b"\x89PNG") and "CFG 2" in made.stdout
    wrong = cli("generate", directory / "trials" / "00000", "--label", "12", "--out", tmp_path / "x.png")
    assert wrong.returncode == 2 and "label '12'" in wrong.stderr


def test_search_table_is_made_from_the_study(study, cli, root, tmp_path):
    """Scores on selection seeds are the stored ones; those on evaluation seeds, scored again, agree bit for bit."""
    path = tmp_path / "table.json"
    made = cli("bench", "search", "--from-study", "tiny", "--root", root, "--table", path, "--json", "--small")
    assert made.returncode == 0, made.stderr
    assert [row["replays"] for row in json.loads(made.stdout)] == [8] * 4 and "2 of 2 checkpoints" in made.stderr
    rows, journal = load_table(path), study[0] / "optuna.journal"
    trials = optuna.load_study(
        study_name="tiny", storage=JournalStorage(JournalFileBackend(str(journal)))
    ).get_trials()[1:]
    assert len(rows) == len(trials) == 2
    for row, trial in zip(rows, trials, strict=True):
        assert row["params"] == trial.params and row["seed"] == trial.user_attrs["seeds"]["training"]
        assert [scale for scale, _, _ in row["scores"]] == [0, 2]
        for point in trial.user_attrs["inference_points"]:
            if point["cfg_scale"] in (0, 2):
                [score] = [score for score in row["scores"] if score[0] == point["cfg_scale"]]
                assert score[1 if point["seeds"] == "selection" else 2] == point["fid"]


def test_changed_protocol_is_refused(study, cluster_cli, root):
    """As after an upgrade that moves a number: found before anything is trained."""
    directory, _, path = study
    copy = root / "changed"
    shutil.copytree(directory, copy)
    shutil.rmtree(copy / "mlflow")
    (copy / "study.yaml").write_text((copy / "study.yaml").read_text().replace("name: tiny", "name: changed"))
    logs = [json.loads(line) for line in (copy / "optuna.journal").read_text().splitlines()]
    for log in logs:
        if log.get("study_name") == "tiny":
            log["study_name"] = "changed"
        if "protocol" in log.get("user_attr", {}):
            log["user_attr"]["protocol"]["samples"] = 99
    (copy / "optuna.journal").write_text("".join(json.dumps(log) + "\n" for log in logs))
    more = cluster_cli("sweep", path, "--study", "changed", "--trials", "4")
    assert more.returncode == 2, more.stdout + more.stderr
    assert "protocol.samples is 100, and 99 in the trials of study 'changed'" in more.stderr
    assert len(more.stderr.strip().splitlines()) == 1 and not (copy / "trials" / "00003").exists()


def test_a_refused_study_leaves_its_name_free(cluster_cli, space, root):
    done = cluster_cli("sweep", space(study={"name": "refused"}), "training.precision=bf16")
    assert done.returncode == 2 and "searching" not in done.stdout, done.stdout
    assert done.stderr.startswith("error: training.precision: bf16 needs a GPU") and done.stderr.count("\n") == 1
    assert not (root / "refused").exists()
