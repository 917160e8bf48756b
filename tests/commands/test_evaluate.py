"""The paper's tables from small checkpoints: their numbers, comparability, and errors."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing

import pytest
import torch
import yaml
from PIL import Image

from tests.helpers.log_lines import captured_log
from uvar_tune.commands.evaluate import Request, run_evaluation
from uvar_tune.config.schema import Config
from uvar_tune.data import TokenCache
from uvar_tune.errors import ConfigError
from uvar_tune.evaluation import Origin, Protocol, ProtocolMismatch
from uvar_tune.paper.checkpoint_evaluation import LoadedCheckpoint
from uvar_tune.pipeline import find_checkpoint
from uvar_tune.study_dir import StudyDirectory
from uvar_tune.training import (
    CheckpointEvent,
    RunContext,
    load_checkpoint,
    load_tokenizer,
    save_checkpoint,
    save_tokenizer,
    train,
)
from uvar_tune.trial.assets import prepare
from uvar_tune.trial.factory import new_var, training_loss

CLASSES = ["0", "1", "2"]
SMALL = {
    "study": {"name": "small"},
    "data": {"name": "digits", "image_size": 16, "classes": CLASSES},
    "tokenizer": {"scales": [1, 2, 3, 4], "vocab_size": 64, "images": 640, "channels": 16},
    "model": {"depth": 1, "width": 32, "heads": 2},
    "training": {"images": 1280, "batch_size": 64, "warmup_images": 128},
    "inference": {"search_cfg_scales": [0, 2], "search_refinements": 1},
    "evaluation": {"extractor": "digits", "samples": 96},
}


@pytest.fixture(scope="module")
def trials(tmp_path_factory, root):
    """{baseline, ours} → directory of a trained trial, on three of the ten digits."""
    found = {}
    for name, weights in (("baseline", {}), ("ours", {"lambda_1": 1.0, "lambda_2": 0.3})):
        found[name] = tmp_path_factory.mktemp(name)
        train_small(Config.model_validate({**SMALL, "loss": weights}), root / "cache", found[name])
    return found


def train_small(config, cache, directory):
    """The checkpoints of a short training below ``directory``."""
    assets = prepare(config, cache, directory / "prepare.jsonl")
    vqvae = load_tokenizer(assets.tokenizer).eval().requires_grad_(False)
    var, t = new_var(config, vqvae, assets.num_classes, seed=3), config.training
    loss = training_loss(config, assets, vqvae, var, "cpu")
    events = train(
        var,
        vqvae,
        TokenCache.open(assets.tokens["train"]),
        loss,
        t,
        RunContext(seed=3, log_images=t.images, checkpoint_images=t.images),
    )
    (due,) = [event for event in events if isinstance(event, CheckpointEvent)]
    save_checkpoint(
        directory / "checkpoints" / f"{due.images:012d}",
        var_state=var.state_dict(),
        config=config.model_dump(mode="json"),
        tokenizer={"path": assets.tokenizer},
        training_state=due.state(),
    )


@pytest.fixture
def ask(trials, root, tmp_path):
    """Runs the evaluation of ours in this process; (tables by name, lines of the log)."""

    def run(*names, **changes):
        request = Request(
            **{
                "checkpoint": str(trials["ours"]),
                "tables": list(names),
                "root": str(root),
                "out": str(tmp_path / "out"),
                "log": False,
                **changes,
            }
        )
        with captured_log() as lines:
            tables = {table.name: table for table in run_evaluation(request)}
        return tables, "\n".join(lines)

    return run


def changed(
    trials, tmp_path, name="other", *, edit_config=lambda tree: tree, edit_state=lambda state: state, tokenizer=None
):
    """A copy of our checkpoint with something changed."""
    stored = load_checkpoint(find_checkpoint(trials["ours"]))
    directory = tmp_path / name / f"{stored.images:012d}"
    save_checkpoint(
        directory,
        var_state=edit_state(dict(stored.var_state)),
        config=edit_config(stored.config),
        tokenizer={"path": str(tokenizer or stored.tokenizer["path"])},
        training_state={"images": stored.images},
    )
    return str(directory)


def test_all_tables_on_the_command_line(trials, cli, root, tmp_path):
    done = cli(
        "evaluate",
        trials["ours"],
        "--baseline",
        trials["baseline"],
        "--tables",
        "all",
        "--root",
        root,
        "--out",
        tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    trees = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert set(trees) == {"table2", "table3", "table5", "table7", "calibration"}
    for name, tree in trees.items():
        assert set(tree["rows"]) == {"baseline", "ours"} and (tmp_path / f"{name}.md").read_text().startswith("## ")
        for numbers in tree["rows"].values():
            for one in numbers.values():
                Protocol.from_dict(one["protocol"]), Origin.from_dict(one["origin"])
    ours, baseline = trees["table2"]["rows"]["ours"], trees["table2"]["rows"]["baseline"]
    assert ours["fid"]["origin"]["seeds"] == baseline["fid"]["origin"]["seeds"] and ours["is"]["spread"] > 0
    assert ours["fid"]["origin"]["configuration"] != baseline["fid"]["origin"]["configuration"]
    assert trees["table3"]["rows"]["baseline"]["mce"]["value"] == pytest.approx(100)
    assert {"auroc_ood/noise", "auroc_ood/inverted", "auroc_ood/left_out"} <= set(trees["table3"]["rows"]["ours"])
    assert len(trees["table3"]["corruption_errors"]["ours"]) == 8
    cost = trees["table5"]["rows"]
    assert cost["ours"]["memory_gib"]["value"] >= cost["baseline"]["memory_gib"]["value"] > 0
    assert cost["ours"]["parameters"]["value"] == sum(
        p.numel() for p in load_checkpoint(find_checkpoint(trials["ours"])).var_state.values() if p.is_floating_point()
    )
    assert "dispersion_ratio/scale_4" in trees["calibration"]["rows"]["ours"]
    assert "published" in done.stdout and "46.97" in done.stdout and "samples at CFG" in done.stdout
    with closing(sqlite3.connect(root / "mlflow.db")) as database:
        (run,) = database.execute(
            "select run_uuid from tags where key = 'uvar.kind' and value = 'evaluation'"
        ).fetchone()
        logged = dict(database.execute("select key, value from latest_metrics where run_uuid = ?", (run,)))
        params = dict(database.execute("select key, value from params where run_uuid = ?", (run,)))
    assert logged["fid"] == pytest.approx(ours["fid"]["value"])
    assert logged["baseline/fid"] == pytest.approx(baseline["fid"]["value"])
    assert json.loads(params["protocol.fid"])["samples"] == 96
    search = trees["table2"]["inference_search"]["ours"]
    assert json.loads(params["origin.fid"])["cfg_scale"] == search["point"]["cfg_scale"]
    assert ours["fid"]["value"] == search["value"]
    assert json.loads(params["protocol.mce"])["divisor"].startswith("errors of ")


def test_inference_point_is_searched_as_in_a_trial(ask, trials, tmp_path):
    """Metric, direction and axes of the checkpoint's study; the value is of the evaluation seeds."""

    def edit(tree):
        inference = {**tree["inference"], "search_axes": ["cfg_scale", "temperature"], "search_refinements": 2}
        return {**tree, "study": {**tree["study"], "metric": "is"}, "inference": inference}

    tables, lines = ask("table2", checkpoint=changed(trials, tmp_path, edit_config=edit))
    search, number = tables["table2"].facts["inference_search"]["ours"], tables["table2"].rows["ours"]["is"]
    *selection, last = search["points"]
    best = max(selection, key=lambda point: point["value"])
    assert search["direction"] == "maximize" and len({point["temperature"] for point in selection}) > 1
    point = {"cfg_scale": best["cfg_scale"], "temperature": best["temperature"]}
    assert search["point"] == point == {name: getattr(number.origin, name) for name in point}
    assert number.value == last["value"] and last["seeds"] == "evaluation"
    assert lines.count("selection seeds: 96 of") == len(selection) and lines.count("evaluation seeds: 96 of") == 1
    assert "selected by is on selection seeds" in tables["table2"].notes[0]


def test_a_given_cfg_scale_is_scored_once(ask):
    tables, lines = ask("table2", cfg_scale=0.5)
    assert tables["table2"].rows["ours"]["fid"].origin.cfg_scale == 0.5 and "selection seeds" not in lines
    assert "CFG 0.5, as given" in tables["table2"].notes[0] and "baseline" not in tables["table2"].rows


def test_no_cfg_scale_without_label_dropout(ask, trials, tmp_path):
    def edit(tree):
        return {
            **tree,
            "study": {**tree["study"], "confirm_axes": ["temperature"]},
            "model": {**tree["model"], "label_dropout": 0},
            "inference": {**tree["inference"], "search": "joint", "cfg_scale": 0},
        }

    with pytest.raises(ConfigError, match="label_dropout 0 trains no unconditional predictions"):
        ask("table2", checkpoint=changed(trials, tmp_path, edit_config=edit), cfg_scale=2.0)


def test_axes_of_the_space_come_from_the_study(trials, root, tmp_path):
    """A checkpoint does not hold the space; the configuration of its study does."""
    study = StudyDirectory(tmp_path, "small")
    shutil.copytree(trials["ours"], study.trial(3))
    assert LoadedCheckpoint(str(study.trial(3))).inference_entries == {}
    space = {"inference.top_k": {"role": "inference", "type": "categorical", "choices": [0, 16]}}
    study.config.write_text(yaml.safe_dump({**SMALL, "space": space}), encoding="utf-8")
    assert LoadedCheckpoint(str(study.trial(3))).inference_entries["top_k"].choices == (0, 16)


def test_few_samples_are_warned_about(ask):
    _, lines = ask("table2", samples=40, cfg_scale=0.0)
    assert "warning: FID from 40 images with 64 features is biased" in lines


def folder(place, names, size=20):
    """A class folder each, one picture in it."""
    for number, name in enumerate(names):
        (place / name).mkdir(parents=True)
        Image.new("RGB", (size, size), (40 * number, 90, 200)).save(place / name / "one.png")
    return place


def test_imagenet_folders_without_a_baseline(ask, tmp_path):
    for kind in ("fog", "snow"):
        for severity in range(1, 6):
            folder(tmp_path / "c" / kind / str(severity), CLASSES)
    folder(tmp_path / "imagenet-o", ["n01", "n02"])
    tables, _ = ask("table3", imagenet_c=str(tmp_path / "c"), ood=str(tmp_path / "imagenet-o"))
    assert set(tables["table3"].facts["corruption_errors"]["ours"]) == {"fog", "snow"}
    row = tables["table3"].rows["ours"]
    assert "mce" not in row and 0 <= row["corruption_error"].value <= 100
    assert any("mCE needs a divisor" in note for note in tables["table3"].notes)
    number = row["auroc_ood/imagenet-o"]
    assert 0 <= number.value <= 1 and "imagenet-o" in number.protocol.conditions
    (tmp_path / "c" / "snow" / "4" / "1" / "one.png").unlink()
    with pytest.raises(ConfigError, match="snow/4: no images of class '1'"):
        ask("table3", imagenet_c=str(tmp_path / "c"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="empty: holds no folder CLASS"):
        ask("table3", ood=str(tmp_path / "empty"))


def test_incomparable_checkpoints_are_refused(ask, trials, tmp_path):
    other = load_tokenizer(load_checkpoint(find_checkpoint(trials["ours"])).tokenizer["path"])
    other.quantize.embedding.weight.data.mul_(1.01)
    save_tokenizer(tmp_path / "tokenizer", other)
    baseline = changed(trials, tmp_path, tokenizer=tmp_path / "tokenizer")
    with pytest.raises(ProtocolMismatch, match="protocol.weights: the baseline's tokenizer .*scales"):
        ask("calibration", baseline=baseline)
    _, lines = ask("table5", baseline=baseline)
    assert "warning: the baseline's tokenizer" in lines
    data = {**SMALL["data"], "classes": ["3", "4", "5"]}
    images = changed(trials, tmp_path, "classes", edit_config=lambda tree: {**tree, "data": data})
    with pytest.raises(ProtocolMismatch, match="protocol.reference: the train images"):
        ask("table2", baseline=images)
    fewer = changed(
        trials, tmp_path, "fewer", edit_config=lambda tree: {**tree, "data": {**data, "classes": ["0", "1"]}}
    )
    with pytest.raises(ConfigError, match="trained on 3 classes, its data .* have 2"):
        ask("table2", checkpoint=fewer)


def test_damaged_checkpoints_and_bad_options(ask, trials, cli, tmp_path):
    def poisoned(state):
        return {**state, "head.bias": torch.full_like(state["head.bias"], float("nan"))}

    with pytest.raises(ConfigError, match="not finite: head.bias"):
        ask("table2", checkpoint=changed(trials, tmp_path, edit_state=poisoned))
    with pytest.raises(ConfigError, match="is not a checkpoint"):
        ask("table2", checkpoint=str(tmp_path))
    with pytest.raises(ConfigError, match="no baseline whose CFG scale"):
        ask("table2", baseline_cfg_scale=1.0)
    with pytest.raises(ConfigError, match="--root: /dev/null/runs/.* cannot be written"):
        ask("table2", root="/dev/null/runs")
    (tmp_path / "a-file").touch()
    with pytest.raises(ConfigError, match="--out: .*a-file cannot be written: .*a-file is not a directory"):
        ask("table2", out=str(tmp_path / "a-file"))
    with pytest.raises(ConfigError, match="'tpu' is not a device"):
        ask("table2", device="tpu")
    wrong = cli("evaluate", trials["ours"], "--tables", "table4")
    assert wrong.returncode == 2 and len(wrong.stderr.strip().splitlines()) == 1
    assert "calibration, all); did you mean 'table" in wrong.stderr


def test_configuration_is_the_checkpoints(trials):
    assert LoadedCheckpoint(str(trials["ours"])).config.loss.lambda_2 == 0.3
