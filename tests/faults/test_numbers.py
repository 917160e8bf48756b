"""Numbers that end a trial: a loss that is not finite, gradients that explode, memory that is refused, in a study of two ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.nn import functional

from uvar_tune.config.schema import Config
from uvar_tune.model.scales import split
from uvar_tune.training import load_tokenizer
from uvar_tune.trial.factory import new_var

pytestmark = [pytest.mark.ray, pytest.mark.faults]

SPACE = {
    "training.learning_rate": {"role": "nuisance", "type": "categorical", "choices": [2e-3, 1e30]},
    "model.width": {"role": "nuisance", "type": "categorical", "choices": [32, 2**16]},
    "loss.lambda_1": {"role": "scientific", "type": "categorical", "choices": [0, 1e36]},
}
GOOD = {"training.learning_rate": 2e-3, "model.width": 32, "loss.lambda_1": 0}
QUEUE = [  # each comes, and the last is fine
    {**GOOD, "training.learning_rate": 1e30},
    {**GOOD, "model.width": 2**16},
    {**GOOD, "loss.lambda_1": 1e36},
    GOOD,
]
STUDY = {"name": "numbers", "trials": 5, "queue": QUEUE}
FINE, NO_MEMORY, NO_NUMBER, STEEP = "complete", "allocate memory", "loss is not a finite number", "grad_norm is inf"


def expected(params: dict) -> str:
    """What comes of a trial: the words of its reason."""
    if params.get("model.width", 32) > 32:
        return NO_MEMORY
    if params.get("training.learning_rate", 2e-3) > 1:
        return NO_NUMBER
    return STEEP if params.get("loss.lambda_1", 0) > 0 else FINE


def overcommits() -> bool:
    """Whether this system promises any amount of memory: then none is refused, and the machine itself would run out."""
    return Path("/proc/sys/vm/overcommit_memory").read_text(encoding="utf-8").strip() == "1"


@pytest.mark.skipif(overcommits(), reason="this system promises any amount of memory (vm.overcommit_memory is 1)")
def test_numeric_failures_are_typed_outcomes(root, cli, space):
    path = space(study=STUDY, training={"images": 640}, run={"workers": 2, "max_concurrent": 1})
    tree = {**yaml.safe_load(path.read_text()), "space": SPACE}
    path.write_text(yaml.safe_dump(tree))
    done = cli("sweep", path, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "out of memory" in done.stdout and "Traceback" not in done.stdout + done.stderr
    check(root / "numbers")


def check(directory: Path) -> None:
    """Every trial has ended as it must, once, and the steps that failed fail again."""
    trials = stored(directory)
    kinds = [expected(trial.params) for trial in trials]
    assert set(kinds) == {FINE, NO_MEMORY, NO_NUMBER, STEEP} and kinds[-1] == FINE  # the study has gone on
    for trial, kind in zip(trials, kinds, strict=True):
        assert len(trial.user_attrs["attempts"]) == 1  # none of them is tried again
        if kind == FINE:
            assert trial.state.name == "COMPLETE"
            continue
        message, place = trial.user_attrs["message"], directory / "trials" / f"{trial.number:05d}"
        assert trial.state.name == "PRUNED" and kind in message
        assert trial.user_attrs["outcome"] == ("out_of_memory" if kind == NO_MEMORY else "diverged")
        if kind != NO_MEMORY:  # where memory runs out before the first step there is no batch
            assert f"its batch: trials/{place.name}/failed_step" in message
            logits, tokens = again(place)
            loss = functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())
            assert bool(torch.isfinite(loss)) == (kind == STEEP)  # there the loss is a number and its gradient is none


def stored(directory: Path):
    import optuna

    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(directory / "optuna.journal"))
    )
    return optuna.load_study(study_name=directory.name, storage=storage).trials


def again(directory: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits, tokens) of the step kept in a trial's directory, by the trial's own configuration."""
    place = directory / "failed_step"
    manifest, batch = json.loads((place / "manifest.json").read_text()), load_file(place / "batch.safetensors")
    assert manifest["batch_size"] == len(batch["tokens_BL"]) == 64  # of both ranks
    config, vqvae = (
        Config.model_validate(yaml.safe_load((directory / "config.yaml").read_text())),
        load_tokenizer(manifest["tokenizer"]),
    )
    var = new_var(config, vqvae, num_classes=10, seed=0)
    var.load_state_dict(load_file(place / "var.safetensors"))
    noise = {name: batch[name] for name in ("label_drop_B", "path_keep")}
    tokens_BL = batch["tokens_BL"]
    with torch.no_grad():
        return var.train()(batch["labels_B"], vqvae.teacher_input(split(tokens_BL, vqvae.scales)), **noise), tokens_BL


def test_diverged_tokenizer_ends_with_one_line(cli, space):
    path = space(study={"name": "burst"}, tokenizer={"learning_rate": 1e30})
    done = cli("sweep", path, timeout=1800)
    assert done.returncode == 1, done.stdout + done.stderr
    assert (
        done.stderr.strip().startswith("error: training diverged after") and len(done.stderr.strip().splitlines()) == 1
    )
