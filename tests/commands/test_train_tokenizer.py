"""`uvar-tune tokenizer`: stopped midway and resumed it makes the same tokenizer, shown in MLflow."""

from __future__ import annotations

import json
import signal
import sqlite3
import time
from contextlib import closing

import pytest
import torch
import yaml
from PIL import Image

from tests.helpers.commands import TINY, end_session
from uvar_tune.commands.train_tokenizer import run_tokenizer
from uvar_tune.config.loading import read_config
from uvar_tune.config.schema import Config, DataConfig
from uvar_tune.data import load_images
from uvar_tune.errors import ConfigError
from uvar_tune.evaluation.reconstruction import reconstruction
from uvar_tune.specs import OutcomeKind, TokenizerSpec
from uvar_tune.tracking.metric_names import metric_key
from uvar_tune.tracking.metrics_log import open_metrics_log
from uvar_tune.training import latest_valid, load_tokenizer, save_tokenizer
from uvar_tune.training.tokenizer_io import check_tokenizer
from uvar_tune.trial.factory import new_vqvae
from uvar_tune.trial.tokenizer_trial import _resume, run_tokenizer_attempt
from uvar_tune.trial.trial import RankContext

TREE = {
    "data": TINY["data"],
    "tokenizer": {**TINY["tokenizer"], "images": 1280, "batch_size": 16, "channels": 8},
    "run": {"checkpoint_images": 128, "log_images": 320},
}


@pytest.fixture(scope="module")
def trained(cluster_cli, root, tmp_path_factory):
    """(configuration file, the run's directory, printed text, official file): stopped by SIGTERM, then run again."""
    folder = tmp_path_factory.mktemp("tokenizer")
    path, directory, official = folder / "digits.yaml", root / "digits-tokenizer", folder / "vae.pth"
    path.write_text(yaml.safe_dump({**TREE, "run": {**TREE["run"], "root": str(root)}}))
    process = cluster_cli.start("tokenizer", path)
    try:
        deadline = time.monotonic() + 240
        while not checkpoints(directory) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=120)
    finally:
        end_session(process)
    assert process.returncode == 130, output
    assert "The same command continues" in output and "Traceback" not in output
    assert 1 <= len(checkpoints(directory)) < 10 and not (directory / "tokenizer").exists()
    done = cluster_cli("tokenizer", path, "--official", official)
    assert done.returncode == 0, done.stdout + done.stderr
    return path, directory, done.stdout, official


def checkpoints(directory) -> list:
    return sorted((directory / "trials" / "00000" / "checkpoints").glob("*/manifest.json"))


@pytest.mark.ray
def test_it_ends_with_the_place_and_how_to_use_it(trained):
    path, directory, text, official = trained
    assert "continues at " in text and f"use it with tokenizer.path={directory / 'tokenizer'}" in text
    assert "held-out reconstruction MSE" in text and "of 64 codes in use" in text and str(official) in text
    vqvae = load_tokenizer(directory / "tokenizer")
    scores = reconstruction(vqvae.eval(), load_images(DataConfig(), "validation"))
    assert f"MSE {scores['reconstruction_mse']:.4f}" in text and scores["reconstruction_mse"] < 0.3
    with Image.open(directory / "trials" / "00000" / "samples" / "reconstructions-000000001280.png") as picture:
        assert picture.width > 2 * picture.height  # two rows


@pytest.mark.ray
def test_interrupted_equals_uninterrupted(trained, tmp_path):
    """The same attempt in this process, without Ray and without a stop: the same weights and the same curve, bit for bit."""
    _, directory, _, official = trained
    spec = TokenizerSpec(
        config=Config.model_validate(TREE),
        seeds={},
        directory=str(tmp_path),
        tokenizer=str(tmp_path / "tokenizer"),
        run_name="run",
        ray_directory="",
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        outcome = run_tokenizer_attempt(spec, RankContext())
    finally:
        torch.set_num_threads(threads)
    assert outcome.kind is OutcomeKind.COMPLETE
    whole, resumed = (load_tokenizer(place / "tokenizer").state_dict() for place in (tmp_path, directory))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    assert curve(tmp_path / "metrics.jsonl") == curve(directory / "trials" / "00000" / "metrics.jsonl")
    theirs = load_tokenizer(official, scales=(1, 2, 3, 4)).state_dict()
    assert whole.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in whole.items())
    newest = latest_valid(
        tmp_path / "checkpoints", on_skip=lambda path, why: None, training_state=True, check=check_tokenizer
    )
    assert newest.name == "000000001280" and load_tokenizer(newest).scales == (1, 2, 3, 4)


def curve(record) -> list:
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    return [
        (line["images"], {name: value for name, value in line["values"].items() if name != "images_per_sec"})
        for line in lines
        if line["kind"] == "metrics"
    ]


@pytest.mark.ray
def test_mlflow_has_curves_images_and_held_out_scores(trained, root):
    with closing(sqlite3.connect(root / "mlflow.db")) as database:
        ((status, run, place),) = database.execute(
            "select r.status, r.run_uuid, r.artifact_uri from runs r join tags t on t.run_uuid = r.run_uuid "
            "where t.key = 'uvar.trial' and t.value = 'digits-tokenizer/0'"
        ).fetchall()
        points = database.execute("select key, step from metrics where run_uuid = ?", (run,)).fetchall()
        params = dict(database.execute("select key, value from params where run_uuid = ?", (run,)))
    assert status == "FINISHED" and params["tokenizer.images"] == "1280" and "model.depth" not in params
    for key in map(metric_key, ("loss/total", "loss/vq", "reconstruction_mse", "code_usage")):
        assert sorted(step for name, step in points if name == key) == list(range(320, 1281, 320)), key
    assert sorted(step for name, step in points if name == "scales/code_usage") == [1, 2, 3, 4]
    held_out = {name: step for name, step in points if name.startswith("held_out/")}
    assert {"held_out/reconstruction_mse", "held_out/code_usage"} <= set(held_out) and set(held_out.values()) == {1280}
    assert list((root / "mlartifacts" / run / "artifacts" / "samples").glob("reconstructions-*1280.png")), place


@pytest.mark.ray
def test_same_command_names_it_other_settings_refused(trained, cli):
    path, directory, _, _ = trained
    again = cli("tokenizer", path)
    assert again.returncode == 0 and "has been trained" in again.stdout and str(directory / "tokenizer") in again.stdout
    assert "Ray" not in again.stdout
    with pytest.raises(ConfigError, match="tokenizer.learning_rate was 0.002, now 0.001"):
        run_tokenizer(read_config(path, ["tokenizer.learning_rate=0.001"]), "digits", official=None)


def test_a_checkpoint_of_another_shape_is_passed_over(tmp_path):
    fitting, other = (
        new_vqvae(Config.model_validate({**TREE, "tokenizer": {**TREE["tokenizer"], "channels": channels}}))
        for channels in (8, 4)
    )
    for images, vqvae in ((64, fitting), (128, other)):
        save_tokenizer(tmp_path / f"{images:012d}", vqvae, training_state={"images": images})
    with open_metrics_log(tmp_path) as recorder:
        assert _resume(tmp_path, fitting, recorder, torch.device("cpu"))["images"] == 64
    assert "checkpoint 000000000128 is not used: " in (tmp_path / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("overrides", "options", "message"),
    [
        (["tokenizer.path=here"], {}, "here' is a tokenizer already"),
        (
            ["run.workers=64", "tokenizer.batch_size=32"],
            {},
            "tokenizer.batch_size: 32 is not a multiple of run.workers 64",
        ),
        ([], {"name": "a/b"}, "--name: 'a/b' is no name"),
        ([], {"official": "/nowhere/vae.pth"}, "--official: '/nowhere/vae.pth' is no file in a directory that exists"),
        (["tokenizer.lpips_weight=-1"], {}, "tokenizer.lpips_weight -1"),
    ],
)
def test_bad_input_is_refused_before_ray_starts(tmp_path, overrides, options, message):
    path = tmp_path / "digits.yaml"
    path.write_text(yaml.safe_dump({**TREE, "run": {"root": str(tmp_path)}}))
    with pytest.raises(ConfigError) as refusal:
        run_tokenizer(read_config(path, overrides), **{"name": "digits", "official": None, **options})
    assert message in str(refusal.value) and not (tmp_path / "digits-tokenizer").exists()
