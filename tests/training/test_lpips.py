"""LPIPS in the tokenizer's loss: refused without its weights, and with them a term whose gradient reaches the decoder."""

from __future__ import annotations

import pytest
import torch
import torchvision

from uvar_tune.config.schema import DataConfig, TokenizerConfig
from uvar_tune.data import load_images
from uvar_tune.data.image_set import to_unit
from uvar_tune.errors import ConfigError
from uvar_tune.model import VQVAE
from uvar_tune.training import CheckpointEvent, Progress, RunContext, open_lpips, train_tokenizer
from uvar_tune.training.perceptual import NETWORKS, weights_file

RUN = RunContext(seed=1, log_images=16)


def config_of(weight: float = 0.0, network: str = "vgg") -> TokenizerConfig:
    settings = {"images": 32, "batch_size": 16, "learning_rate": 1e-3}
    return TokenizerConfig(**settings, lpips_weight=weight, lpips_network=network)


def small() -> VQVAE:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return VQVAE(
            TokenizerConfig(vocab_size=16, code_dim=8, channels=8, channel_multipliers=(1, 2, 2), scales=(1, 2, 5))
        )


@pytest.fixture(scope="module")
def digits():
    return load_images(DataConfig(image_size=20), "train")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A torch.hub of the test's own, without any weights."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def weights(hub):
    """Random weights where those of SqueezeNet are looked for."""
    hub.mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        path, _ = weights_file("squeeze")
        torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), path)
    assert path.parent == hub
    return path


@pytest.mark.parametrize("network", NETWORKS)
def test_missing_weights_are_named(hub, network):
    with pytest.raises(ConfigError, match="tokenizer.lpips_weight: LPIPS needs the weights") as refusal:
        open_lpips(network, image_size=64)
    path, url = weights_file(network)
    assert str(path) in str(refusal.value) and url in str(refusal.value) and path.parent == hub


def test_training_needs_the_weights(hub, digits):
    with pytest.raises(ConfigError, match="LPIPS needs the weights of vgg16"):
        train_tokenizer(small(), digits, config_of(1.0), RUN)


def test_bad_settings_are_refused(weights, digits):
    with pytest.raises(ConfigError, match="'alex' takes images of at least 31 px, these have 20"):
        train_tokenizer(small(), digits, config_of(1.0, "alex"), RUN)
    with pytest.raises(ConfigError, match="unknown LPIPS network 'vgg19'"):
        open_lpips("vgg19", image_size=20)
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ConfigError, match="holds no weights of squeezenet1_1"):
        open_lpips("squeeze", image_size=20)


def test_term_enters_loss_and_gradient(weights, digits):
    """The first step of both: same network, same images, so the losses differ by weight · LPIPS, which the oracle gives."""
    first, states = {}, {}
    for weight in (0.0, 3.0):
        vqvae = small()
        events = train_tokenizer(vqvae, digits, config_of(weight, "squeeze"), RUN)
        first[weight] = next(event for event in events if isinstance(event, Progress)).values
        states[weight] = next(event for event in events if isinstance(event, CheckpointEvent)).state()
    plain, with_term = first[0.0], first[3.0]
    assert "loss/lpips" not in plain and with_term["loss/lpips"] > 0
    for name in ("loss/vq", "reconstruction_mse"):
        assert with_term[name] == pytest.approx(plain[name], rel=1e-6)
    assert with_term["loss/total"] == pytest.approx(plain["loss/total"] + 3 * with_term["loss/lpips"], rel=1e-5)
    assert with_term["grad_norm"] != pytest.approx(plain["grad_norm"], rel=1e-3)
    assert states[3.0]["hyperparameters"]["data"]["lpips"] == ["squeeze", 3.0]
    with pytest.raises(ConfigError, match="data.lpips was"):
        train_tokenizer(small(), digits, config_of(), RUN, start=states[3.0])


def test_lpips_is_frozen_and_zero_only_between_equals(weights, digits):
    lpips = open_lpips("squeeze", image_size=20)
    images = to_unit(digits.images[:2]).requires_grad_()
    assert not any(parameter.requires_grad for parameter in lpips.train(True).parameters()) and not lpips.training
    assert lpips(images, images).abs().max() == 0
    lpips(images, images.detach().flip(0)).sum().backward()
    assert images.grad.abs().sum() > 0
