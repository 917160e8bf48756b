"""Checkpoints: atomic, corruption detected, the previous one used, retention within bounds."""

from __future__ import annotations

import json
import os

import pytest
import torch

from tests.helpers.trainee import networks
from uvar_tune.config.schema import TokenizerConfig
from uvar_tune.errors import ConfigError
from uvar_tune.model import VQVAE
from uvar_tune.training import (
    differences,
    latest_valid,
    load_checkpoint,
    load_tokenizer,
    require_same,
    retain,
    save_checkpoint,
    save_tokenizer,
    tokenizer_hash,
)


@pytest.fixture
def tokenizer(tmp_path):
    save_tokenizer(tmp_path / "tokenizer", networks()[1])
    return {"path": str(tmp_path / "tokenizer")}


@pytest.fixture
def save(tmp_path, tokenizer):
    """Writes the checkpoint of so many images; its directory."""

    def write(images: int, **more):
        directory = tmp_path / "checkpoints" / f"{images:012d}"
        save_checkpoint(
            directory,
            var_state={"w": torch.full((300,), float(images)), "b": torch.tensor(1, dtype=torch.int64)},
            config={"training": {"learning_rate": 1e-5, "betas": (0.9, 0.95)}},
            tokenizer=tokenizer,
            training_state={"images": images, "optimizer": {"step": torch.tensor(3.0)}},
            **more,
        )
        return directory

    return write


def skipped(parent, **options):
    skips = []
    return latest_valid(parent, on_skip=lambda path, why: skips.append((path.name, why)), **options), skips


def test_checkpoint_round_trip(save, tokenizer):
    directory = save(64, ema_state={"w": torch.ones(2)})
    result = load_checkpoint(directory, training_state=True)
    assert torch.equal(result.var_state["w"], torch.full((300,), 64.0)) and result.var_state["b"].dtype == torch.int64
    assert result.config == {"training": {"learning_rate": 1e-5, "betas": [0.9, 0.95]}}
    assert result.tokenizer == {**tokenizer, "sha256": tokenizer_hash(tokenizer["path"])}
    assert result.images == 64 and result.training_state["optimizer"] == {"step": torch.tensor(3.0)}
    assert torch.equal(result.ema_state["w"], torch.ones(2)) and result.training_state["ema"] is result.ema_state
    assert load_checkpoint(directory).training_state is None


def test_averaged_weights_have_their_own_file(save, tmp_path, tokenizer):
    save_checkpoint(
        tmp_path / "c" / "1",
        var_state={},
        config={},
        tokenizer=tokenizer,
        training_state={"images": 1, "ema": {"w": torch.ones(1)}},
    )
    assert (tmp_path / "c" / "1" / "ema.safetensors").exists()
    assert load_checkpoint(tmp_path / "c" / "1").ema_state.keys() == {"w"}


def test_config_is_compared_key_by_key(save):
    then = load_checkpoint(save(64)).config
    require_same(then, {"training": {"learning_rate": 1e-5, "betas": (0.9, 0.95)}}, where="here")
    now = {"training": {"learning_rate": 2e-5, "betas": (0.9, 0.95)}, "model": {"depth": 2}}
    assert differences(then, now) == ["training.learning_rate was 1e-05, now 2e-05", "model was None, now {'depth': 2}"]
    with pytest.raises(
        ConfigError, match="here: cannot be continued under another configuration: training.learning_rate"
    ):
        require_same(then, now, where="here")


def flip(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def edit_manifest(change):
    def damage(directory):
        manifest = json.loads((directory / "manifest.json").read_text())
        change(manifest)
        (directory / "manifest.json").write_text(json.dumps(manifest))

    return damage


def lead(path, leads_to):
    path.unlink()
    path.symlink_to(leads_to)


def unreadable(directory):
    """Weights of which the first byte is an input/output error, as of a bad sector."""
    lead(directory / "var.safetensors", "/proc/self/mem")
    edit_manifest(lambda m: m["files"]["var.safetensors"].update(bytes=0))(directory)


DAMAGE = {
    "truncated weights": (lambda d: os.truncate(d / "var.safetensors", 100), "var.safetensors has 100 bytes"),
    "a bit of the weights": (lambda d: flip(d / "var.safetensors"), "var.safetensors does not have the content"),
    "a bit of the optimiser": (lambda d: flip(d / "training.pt"), "training.pt does not have the content"),
    "edited configuration": (lambda d: flip(d / "config.yaml"), "config.yaml does not have the content"),
    "weights gone": (lambda d: (d / "var.safetensors").unlink(), "var.safetensors is missing"),
    "manifest gone": (lambda d: (d / "manifest.json").unlink(), "no readable manifest.json"),
    "manifest cut": (lambda d: os.truncate(d / "manifest.json", 40), "no readable manifest.json"),
    "manifest of other files": (
        edit_manifest(lambda m: m["files"].update({"../../x": m["files"]["config.yaml"]})),
        "names",
    ),
    "manifest of endless bytes": (
        edit_manifest(lambda m: m["files"]["config.yaml"].update(bytes=1e999)),
        "no readable manifest",
    ),
    "manifest far too long": (
        lambda d: os.truncate(d / "manifest.json", 2**25),
        "manifest.json (cannot be read (larger than",
    ),
    "manifest that is a device": (lambda d: lead(d / "manifest.json", "/dev/null"), "not a regular file"),
    "a bad sector": (unreadable, "var.safetensors cannot be read (Input/output error)"),
    "manifest without images": (edit_manifest(lambda m: m.pop("images")), "does not say how many images"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_corrupted_checkpoint_is_skipped(save, case):
    before, newest = save(64), save(128)
    damage, why = DAMAGE[case]
    damage(newest)
    result, skips = skipped(newest.parent)
    assert result == before
    assert [name for name, _ in skips] == [newest.name] and why in skips[0][1]
    with pytest.raises(ConfigError, match=newest.name):
        load_checkpoint(newest)


def test_training_state_may_be_deleted(save):
    """Then the weights can be used, and a training goes on from the one before."""
    before, newest = save(64), save(128)
    (newest / "training.pt").unlink()
    assert skipped(newest.parent) == (newest, [])
    assert load_checkpoint(newest).images == 128
    result, skips = skipped(newest.parent, training_state=True)
    assert result == before and "training.pt was deleted" in skips[0][1]
    with pytest.raises(ConfigError, match="was deleted"):
        load_checkpoint(newest, training_state=True)


def test_averaged_weights_may_not_be_deleted(save):
    """They are what was scored: without them the raw weights would replace them silently."""
    before, newest = save(64), save(128, ema_state={"w": torch.ones(2)})
    (newest / "ema.safetensors").unlink()
    result, skips = skipped(newest.parent)
    assert result == before and "ema.safetensors is missing" in skips[0][1]


def test_leftovers_are_no_checkpoint(save):
    directory = save(64)
    left = directory.with_name(f".000000000128.{'0' * 32}.tmp")
    left.mkdir()
    (left / "var.safetensors").write_text("half")
    (directory.parent / "notes").mkdir()
    assert skipped(directory.parent) == (directory, [])
    save(192)
    assert not left.exists() and (directory.parent / "notes").exists()


def test_saving_again_replaces(save):
    directory = save(64)
    os.truncate(directory / "var.safetensors", 10)
    assert save(64) == directory
    assert skipped(directory.parent) == (directory, [])


def test_newest_is_by_number(save):
    short = save(96)
    short.rename(short.with_name("96"))
    newest = save(128)
    assert skipped(newest.parent) == (newest, [])


def test_no_checkpoints(tmp_path):
    assert skipped(tmp_path / "none") == (None, [])


def test_retention_keeps_newest_valid(save):
    paths = [save(images) for images in (64, 128, 192, 256)]
    parent, size = paths[0].parent, sum(file.stat().st_size for file in paths[0].iterdir())
    assert retain(parent, max_bytes=5 * size) == []
    assert retain(parent, max_bytes=3 * size + 50) == paths[:1]
    flip(paths[3] / "var.safetensors")
    assert retain(parent, max_bytes=1) == [paths[1], paths[3]]
    assert skipped(parent) == (paths[2], [])
    assert retain(parent, max_bytes=1) == []


def test_retention_with_broken_links(save):
    paths = [save(images) for images in (64, 128)]
    for path in paths:
        (path / "notes").symlink_to(path / "nowhere")
    assert retain(paths[0].parent, max_bytes=1) == paths[:1] and not paths[0].exists()


def test_tokenizer_round_trip_and_corruption(tokenizer, tmp_path):
    vqvae, images = networks()[1], torch.rand(3, 3, 8, 8) * 2 - 1
    loaded = load_tokenizer(tokenizer["path"])
    assert loaded.settings() == vqvae.settings()
    assert all(torch.equal(a, b) for a, b in zip(loaded.encode(images), vqvae.encode(images), strict=True))
    first = tokenizer_hash(tokenizer["path"])
    flip(tmp_path / "tokenizer" / "vqvae.safetensors")
    assert tokenizer_hash(tokenizer["path"]) != first
    with pytest.raises(ConfigError, match="does not have the content"):
        load_tokenizer(tokenizer["path"])
    for nothing in (load_tokenizer, tokenizer_hash):
        with pytest.raises(ConfigError, match="no tokenizer here"):
            nothing(tmp_path / "elsewhere")


def test_tokenizer_leftovers_are_removed(tmp_path):
    vqvae = VQVAE(TokenizerConfig(vocab_size=8, code_dim=4, channels=8, scales=(1, 2), channel_multipliers=(1,)))
    left = tmp_path / "checkpoints" / f".000000000064.{'0' * 32}.tmp"
    left.mkdir(parents=True)
    save_tokenizer(tmp_path / "checkpoints" / "000000000128", vqvae, training_state={"images": 128})
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["000000000128"]


def test_official_file_is_a_tokenizer(tmp_path):
    from uvar_tune.model import save_official

    vqvae = networks()[1]
    save_official(vqvae, vae_path=tmp_path / "vae.pth")
    loaded = load_tokenizer(tmp_path / "vae.pth", scales=vqvae.scales)
    assert all(torch.equal(value, vqvae.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert len(tokenizer_hash(tmp_path / "vae.pth")) == 64
    with pytest.raises(ConfigError, match="no such file|no tokenizer here"):
        load_tokenizer(tmp_path / "none.pth")
