"""What a user can get wrong at the doors: one clear line on stderr, exit code 2, nothing written."""

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
    "out of range": (["objective.lambda_2=1.5"], "objective.lambda_2 1.5"),
    "unknown reference": (["objective.reference=unifrom"], "did you mean 'uniform'"),
    "images that do not divide": (["training.images=100"], "the nearest: 64 or 128"),
    "no number": (["training.learning_rate=fast"], "training.learning_rate 'fast'"),
    "rate of 0": (["training.learning_rate=0"], "greater than 0"),
    "objective with a weight": (["study.objective=loss/total"], "never selects on it"),
    "unknown objective": (["study.objective=fidd"], "did you mean 'fid'"),
    "study name with a path": (["study.name=../x"], "study.name '../x'"),
    "weights that are not there": (["evaluation.extractor=inception-v3-compat", "evaluation.weights=/nowhere/inception.pth"],
                                   "evaluation.weights: /nowhere/inception.pth does not exist"),
    "unknown feature network": (["evaluation.extractor=inceptoin-v3-compat"], "did you mean 'inception-v3-compat'"),
    "a value of what is searched": (["objective.lambda_1=0.01"], "command line: objective.lambda_1 0.01: space.objective.lambda_1 "
                                   "searches it"),
    "no trials": (["--trials", "0"], "--trials: study.trials 0"),
    "unknown phase": (["--dry-run", "--phase", "explor"], "did you mean 'explore'"),
    "a plan without its images": (["--dry-run", "data.name=folder", "data.path=/nowhere"], "/nowhere is no directory"),
    "root in a file": (["run.root=/dev/null/runs"], "cannot be written"),
}


@pytest.mark.parametrize("name", CASES)
def test_overrides(name, doors, space, tmp_path):
    arguments, message = CASES[name]
    assert message in one_line(doors("sweep", space(), *arguments))


SPACES = {
    "low above high": ({"low": 6, "high": 0.01}, "low 6 must be below high 0.01"),
    "log with 0": ({"low": 0, "high": 1, "log": True}, "a log scale needs low > 0"),
    "unknown field": ({"low": 0.1, "high": 1, "choice": [1]}, "did you mean 'space.objective.lambda_1.choices'"),
}


@pytest.mark.parametrize("name", SPACES)
def test_spaces(name, doors, space):
    entry, message = SPACES[name]
    path = space()
    tree = yaml.safe_load(path.read_text())
    tree["space"]["objective.lambda_1"] = {"role": "scientific", "type": "float", **entry}
    path.write_text(yaml.safe_dump(tree))
    assert message in one_line(doors("sweep", path))


def test_files(doors, space, tmp_path):
    assert "no such file" in one_line(doors("sweep", tmp_path / "spce.yaml"))
    (tmp_path / "bad.yaml").write_text("study: {name: x\ntraining: [1")
    assert "not YAML" in one_line(doors("sweep", tmp_path / "bad.yaml"))
    assert "is a space file" in one_line(doors("train", space()))
    assert "is not a checkpoint" in one_line(doors("generate", tmp_path, "--out", tmp_path / "x.png"))
    assert "no study 'nothing'" in one_line(doors("report", "--study", "nothing", "--root", tmp_path))
    assert "No such option" in one_line(doors("sweep", "--trails", "3"))
