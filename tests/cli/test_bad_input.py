"""What a user can get wrong at the cli: one clear line on stderr, exit code 2, nothing written."""

from __future__ import annotations

import pytest
import yaml


def one_line(done) -> str:
    assert done.returncode == 2, done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    return lines[0]


CASES = {
    "unknown key": (["training.learning_rat=1"], "did you mean 'training.learning_rate'"),
    "out of range": (["loss.lambda_2=1.5"], "loss.lambda_2 1.5"),
    "unknown reference": (["loss.reference=unifrom"], "did you mean 'uniform'"),
    "images that do not divide": (["training.images=100"], "the nearest: 64 or 128"),
    "no number": (["training.learning_rate=fast"], "training.learning_rate 'fast'"),
    "rate of 0": (["training.learning_rate=0"], "greater than 0"),
    "objective with a weight": (["study.metric=loss/total"], "never selects on it"),
    "unknown objective": (["study.metric=fidd"], "did you mean 'fid'"),
    "study name with a path": (["study.name=../x"], "study.name '../x'"),
    "weights that are not there": (
        ["evaluation.extractor=inception-v3-compat", "evaluation.weights=/nowhere/inception.pth"],
        "evaluation.weights: /nowhere/inception.pth does not exist",
    ),
    "unknown feature network": (["evaluation.extractor=inceptoin-v3-compat"], "did you mean 'inception-v3-compat'"),
    "a value of what is searched": (
        ["loss.lambda_1=0.01"],
        "command line: loss.lambda_1 0.01: space.loss.lambda_1 searches it",
    ),
    "no trials": (["--trials", "0"], "--trials: study.trials 0"),
    "unknown phase": (["--dry-run", "--phase", "explor"], "did you mean 'explore'"),
    "a plan without its images": (
        ["--dry-run", "data.name=folder", "data.path=/nowhere"],
        "/nowhere is not a directory",
    ),
    "root in a file": (["run.root=/dev/null/runs"], "cannot be written"),
    "queue": (["study.queue=[{loss.lambda_1: 99}]"], "study.queue[0]: loss.lambda_1: 99 is outside its range"),
    "warm start": (["study.warm_start=nowhere"], "no study 'nowhere' below"),
}


@pytest.mark.parametrize("name", CASES)
def test_invalid_override_prints_one_line(name, cli, space, tmp_path):
    arguments, message = CASES[name]
    assert message in one_line(cli("sweep", space(), *arguments))


SPACES = {
    "low above high": ({"low": 6, "high": 0.01}, "low 6 must be below high 0.01"),
    "log with 0": ({"low": 0, "high": 1, "log": True}, "a log scale needs low > 0"),
    "unknown field": ({"low": 0.1, "high": 1, "choice": [1]}, "did you mean 'space.loss.lambda_1.choices'"),
}


@pytest.mark.parametrize("name", SPACES)
def test_invalid_space_prints_one_line(name, cli, space):
    entry, message = SPACES[name]
    path = space()
    tree = yaml.safe_load(path.read_text())
    tree["space"]["loss.lambda_1"] = {"role": "scientific", "type": "float", **entry}
    path.write_text(yaml.safe_dump(tree))
    assert message in one_line(cli("sweep", path))


def test_unusable_file_prints_one_line(cli, space, tmp_path):
    assert "no such file" in one_line(cli("sweep", tmp_path / "spce.yaml"))
    (tmp_path / "bad.yaml").write_text("study: {name: x\ntraining: [1")
    assert "not YAML" in one_line(cli("sweep", tmp_path / "bad.yaml"))
    assert "is a space file" in one_line(cli("train", space()))
    assert "is not a checkpoint" in one_line(cli("generate", tmp_path, "--out", tmp_path / "x.png"))
    assert "no study 'nothing'" in one_line(cli("report", "--study", "nothing", "--root", tmp_path))
    assert "No such option" in one_line(cli("sweep", "--trails", "3"))
