"""The dump of a failed step: the files reproduce the failure without the loop."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from tests.helpers.trainee import RUN, SCALES, loss_with, networks, settings, tokens
from uvar_tune.errors import ConfigError, Diverged, OutOfMemory
from uvar_tune.model.scales import split
from uvar_tune.training import dump_failed_batch, train


def fail(tmp_path, loss=None, **changes):
    """Train until it fails; (the failure, the directory retained, the model as it was before the first step)."""
    var, vqvae = networks()
    with pytest.raises((Diverged, OutOfMemory)) as failure:
        list(train(var, vqvae, tokens(crops=2), loss or loss_with(vqvae), *settings(**changes)))
    place = dump_failed_batch(
        tmp_path,
        failure.value,
        var,
        tokens(crops=2),
        seed=RUN["seed"],
        batch_size=16,
        tokenizer="somewhere",
    )
    return failure.value, place


def logits(place, var):
    batch = load_file(place / "batch.safetensors")
    noise = {name: batch[name] for name in ("label_drop_B", "path_keep")}
    teacher_input = networks()[1].teacher_input(split(batch["tokens_BL"], SCALES))
    return var.train()(batch["labels_B"], teacher_input, **noise), batch["tokens_BL"]


def test_dump_reproduces_the_divergence(tmp_path):
    error, place = fail(tmp_path, learning_rate=1e30, warmup_images=0, clip=None)
    var, _ = networks()
    var.load_state_dict(load_file(place / "var.safetensors"))
    logits_BLV, tokens_BL = logits(place, var)
    assert not torch.isfinite(functional.cross_entropy(logits_BLV.flatten(0, 1), tokens_BL.flatten()))
    assert torch.isfinite(functional.cross_entropy(logits(place, networks()[0])[0].flatten(0, 1), tokens_BL.flatten()))
    manifest = json.loads((place / "manifest.json").read_text())
    assert manifest["images"] == error.images > 0 and manifest["reason"] == str(error) and manifest["batch_size"] == 16
    assert manifest["tokenizer"] == "somewhere"


def test_dump_reproduces_an_infinite_norm(tmp_path):
    """A loss of 1e30 is a number, and so is each gradient; the sum of their squares is none."""

    def loss(model, vqvae, tokens_BL, labels_B, noise):
        terms = inner(model, vqvae, tokens_BL, labels_B, noise)
        return type(terms)(terms.total * 1e30, *list(vars(terms).values())[1:])

    inner = loss_with(networks()[1])
    error, place = fail(tmp_path, loss)
    assert "grad_norm is inf" in str(error) and error.images == 0
    var, vqvae = networks()
    var.load_state_dict(load_file(place / "var.safetensors"))
    batch = load_file(place / "batch.safetensors")
    loss(var.train(), vqvae, batch.pop("tokens_BL"), batch.pop("labels_B"), batch).total.backward()
    gradients = [parameter.grad for parameter in var.parameters() if parameter.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert torch.isinf(torch.nn.utils.get_total_norm(gradients))


def test_out_of_memory_dumps_the_batch(tmp_path):
    """The allocator really refuses: 2^45 numbers on the host."""
    seen, calls = [], 0
    inner = loss_with(networks()[1], seen)

    def loss(*arguments):
        nonlocal calls
        calls += 1
        terms = inner(*arguments)
        if calls == 4:
            torch.empty(2**45)
        return terms

    error, place = fail(tmp_path, loss)
    assert isinstance(error, OutOfMemory) and error.images == 48 and "allocate" in str(error)
    assert sorted(path.name for path in place.iterdir()) == ["batch.safetensors", "manifest.json"]
    batch = load_file(place / "batch.safetensors")
    assert [(t, bool(d), p) for t, d, p in seen[-16:]] == list(
        zip(batch["tokens_BL"].tolist(), batch["label_drop_B"].tolist(), batch["path_keep"].T.tolist(), strict=True)
    )


def test_other_errors_are_not_converted(tmp_path):
    def loss(*arguments):
        raise RuntimeError("a shape, say")

    with pytest.raises(RuntimeError, match="a shape, say") as failure:
        list(train(*networks(), tokens(), loss, *settings()))
    assert not isinstance(failure.value, (Diverged, OutOfMemory, ConfigError))


def test_non_finite_weights_are_left_out(tmp_path):
    var, vqvae = networks()
    with torch.no_grad():
        var.head.bias[0] = float("nan")
    with pytest.raises(Diverged) as failure:
        list(train(var, vqvae, tokens(), loss_with(vqvae), *settings()))
    place = dump_failed_batch(tmp_path, failure.value, var, tokens(), seed=RUN["seed"], batch_size=16, tokenizer="t")
    assert not (place / "var.safetensors").exists() and (place / "batch.safetensors").exists()
