"""Stage 1 on the digits: it learns, resumes, keeps its codes in use, and warns."""

from __future__ import annotations

import copy

import pytest
import torch

from uvar_tune import seeds
from uvar_tune.config.schema import DataConfig, TokenizerConfig
from uvar_tune.data import ImageSet, load_images
from uvar_tune.data.image_set import to_unit
from uvar_tune.errors import ConfigError
from uvar_tune.model import VQVAE
from uvar_tune.training import CheckpointEvent, Progress, RunContext, TrainingWarning, train_tokenizer
from uvar_tune.training.optim import adamw
from uvar_tune.training.tokenizer_stage import CodeUsage, kmeans_plus_plus, residuals, restart_codes


def small(vocab_size: int = 32) -> VQVAE:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return VQVAE(
            TokenizerConfig(vocab_size=vocab_size, code_dim=8, channels=8, channel_multipliers=(1, 2), scales=(1, 2, 4))
        )


@pytest.fixture(scope="module")
def digits():
    return load_images(DataConfig(image_size=8), "train")


SETTINGS = dict(images=3200, batch_size=32, learning_rate=3e-3)
CONFIG, RUN = TokenizerConfig(**SETTINGS), RunContext(seed=1)


@pytest.fixture(scope="module")
def trained(digits):
    """(tokenizer, events, (parameters, state) at each checkpoint)."""
    vqvae, events, due = small(), [], {}
    for event in train_tokenizer(vqvae, digits, CONFIG, RUN):
        events.append(event)
        if isinstance(event, CheckpointEvent):
            due[event.images] = copy.deepcopy((vqvae.state_dict(), event.state()))
    return vqvae, events, due


def test_learns_to_reconstruct_with_its_codes_in_use(trained, digits):
    vqvae, events, due = trained
    curve = [event for event in events if isinstance(event, Progress)]
    first, last = curve[0].values, curve[-1].values
    assert last["reconstruction_mse"] < 0.17 < 0.3 < first["reconstruction_mse"]
    assert last["loss/total"] == pytest.approx(last["loss/vq"] + last["reconstruction_mse"], rel=1e-5)
    assert last["code_usage"] >= 0.95 and not any(isinstance(event, TrainingWarning) for event in events)
    assert {f"code_usage/scale_{k}" for k in (1, 2, 3)} <= set(last)
    tokens = vqvae.encode(to_unit(digits.images))
    assert len(torch.cat(tokens, 1).unique()) >= 31
    assert sorted(due) == [800, 1600, 2400, 3200] and curve[-1].images == 3200


def test_tokenizer_resumes_with_the_same_bits(trained, digits):
    """From 1,600 images, in the middle of an epoch and of a window of the usage counts."""
    whole, events, due = trained
    vqvae = small()
    vqvae.load_state_dict(due[1600][0])
    rest = list(train_tokenizer(vqvae, digits, CONFIG, RUN, start=due[1600][1]))
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in vqvae.state_dict().items())

    def curve(events):
        return [
            (event.images, {**event.values, "images_per_sec": 0})
            for event in events
            if isinstance(event, Progress) and event.images > 1600
        ]

    assert curve(rest) == curve(events)


def test_dead_codes_restart(digits):
    """Half of the codes are sent far away; after the restart each is a present residual vector, its moments reset."""
    vqvae, images = small(), to_unit(digits.images[:64])
    optimizer = adamw(vqvae, weight_decay=0.0, betas=(0.9, 0.95))
    vqvae.codebook_VC.data[16:] = 1e3
    reconstruction, loss, tokens = vqvae(images)
    (loss + reconstruction.square().mean()).backward()
    optimizer.step()
    usage = CodeUsage(vqvae, 1)
    usage.add(tokens)
    usage.synchronize()
    dead = (usage.counts_KV.sum(0) == 0).nonzero().flatten()
    assert dead.tolist()[-16:] == list(range(16, 32)) and usage.shares()["code_usage"] == (32 - len(dead)) / 32
    candidates, twin = residuals(vqvae, images), copy.deepcopy(vqvae)
    before_VC = vqvae.codebook_VC.detach().clone()
    restart_codes(vqvae, dead, images, seeds.generator(1), optimizer, 1)
    after_VC = vqvae.codebook_VC.detach()
    assert all((candidates == code_C).all(1).any() for code_C in after_VC[dead])
    alive = sorted(set(range(32)) - set(dead.tolist()))
    assert torch.equal(after_VC[alive], before_VC[alive])
    for moment in ("exp_avg", "exp_avg_sq"):
        state_VC = optimizer.state[vqvae.codebook_VC][moment]
        assert not state_VC[dead].any() and state_VC[alive].any()
    restart_codes(twin, dead, images, seeds.generator(1), adamw(twin, weight_decay=0.0, betas=(0.9, 0.95)), 1)
    assert torch.equal(twin.codebook_VC, vqvae.codebook_VC)


def test_kmeans_plus_plus_prefers_distant_vectors():
    """Two tight clusters, one of them already represented: the first new code is in the other."""
    heaps = torch.cat([torch.randn(50, 2) * 1e-3, torch.randn(50, 2) * 1e-3 + 10])
    for seed in range(20):
        assert kmeans_plus_plus(heaps, torch.zeros(1, 2), 1, seeds.generator(seed)).mean() > 9
    both = kmeans_plus_plus(heaps, torch.empty(0, 2), 2, seeds.generator(0)).mean(1).sort().values
    assert both[0] < 1 and both[1] > 9


def test_warning_when_few_codes_are_used():
    """One image over and over has use for few codes; warned once, not at every window."""
    pixels = load_images(DataConfig(image_size=8), "train").images[:1].expand(64, -1, -1, -1).contiguous()
    alike = ImageSet(pixels, torch.zeros(64, dtype=torch.long), ["0"], "0" * 64, 8)
    config = TokenizerConfig(images=1920, batch_size=64, learning_rate=1e-3)
    events = list(train_tokenizer(small(64), alike, config, RUN))
    alarms = [event for event in events if isinstance(event, TrainingWarning)]
    assert len(alarms) == 1 and "of the 64 codes are in use" in alarms[0].text


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"images": 100}, "nearest: 96 or 128"),
        ({"batch_size": 1600}, "1438 images are fewer"),
    ],
)
def test_bad_settings_are_refused(digits, changes, message):
    with pytest.raises(ValueError, match=message):
        train_tokenizer(small(), digits, TokenizerConfig(**{**SETTINGS, **changes}), RUN)


def test_images_of_another_size_are_refused():
    with pytest.raises(ConfigError, match="images of 16 px, this tokenizer takes 8"):
        train_tokenizer(small(), load_images(DataConfig(), "train"), CONFIG, RUN)
