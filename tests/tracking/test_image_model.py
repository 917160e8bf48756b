"""The best checkpoint as a model in MLflow: complete in itself, loaded by MLflow alone, registered by `export`."""

import json
import shutil
import subprocess
import sys

import pytest

from tests.helpers.mlflow_store import MLflowStore
from tests.helpers.shown_study import ShownStudy
from uvar_tune.cli.main import main

LOAD = """
import sys
for name in ("ray", "optuna", "matplotlib", "torch_fidelity", "sklearn", "scipy", "torchmetrics", "torchvision"):
    sys.modules[name] = None  # what the model does not list among its requirements
import mlflow, pandas, json
mlflow.set_tracking_uri(sys.argv[1]); mlflow.set_registry_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
import uvar_tune
rows = pandas.DataFrame({"label": [1, 'dog "D"', "🦉"], "seed": [3, 3, 4]})
images = model.predict(rows, params={"cfg_scale": 2.0})
print(json.dumps({"code": uvar_tune.__file__, "shape": images.shape, "dtype": str(images.dtype),
                  "equal": bool((images[0] == images[1]).all()), "other": bool((images[0] != images[2]).any())}))
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    study = ShownStudy(MLflowStore(tmp_path_factory.mktemp("model")), "v1.0", trials=3)
    study.search().finish()
    return study


def export(study, *options: str) -> int:
    return main(["export", "--study", "v1.0", "--root", str(study.files.root), "--unconfirmed", *options])


def test_registered_model_draws_images(study, capsys, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for version in (1, 2):  # the model is logged once, and is a version each time
        assert export(study, "--register", "digit images") == 0
        assert f"models:/digit images/{version} (trial" in capsys.readouterr().out
    store = MLflowStore(study.files.root)
    [model] = store.client.search_logged_models(["1"])
    assert (model.name.startswith("v1-0-t00"), str(model.status)) == (True, "READY")
    tokenizer, away = study.files.cache / "tokenizers", study.files.root / "away"
    shutil.move(tokenizer, away)
    try:
        command = [sys.executable, "-c", LOAD, store.uri, "models:/digit images/2"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=study.files.root, check=False)
    finally:
        shutil.move(away, tokenizer)
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert str(study.files.root / "mlartifacts") in loaded.pop("code")
    assert loaded == {"shape": [3, 8, 8, 3], "dtype": "uint8", "equal": True, "other": True}


@pytest.mark.parametrize("name", ["a/b", "a:b", "a.b", "", 'quo"ted', "x" * 251])
def test_invalid_names_are_refused(study, capsys, name):
    assert export(study, "--register", name) == 2
    assert "is no name of a model" in capsys.readouterr().err


def test_a_trial_without_checkpoint_is_refused(study, capsys):
    other = next(trial.number for trial in reversed(study.results().ranked()))
    assert export(study, "--trial", str(other), "--register", "digits") == 2
    assert "has no valid checkpoint" in capsys.readouterr().err
