"""A small tokenizer, and a folder of synthetic images."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from uvar_tune.config.schema import TokenizerConfig
from uvar_tune.model import VQVAE


@pytest.fixture(autouse=True)
def own_cache_home(monkeypatch, tmp_path):
    """Cached verifications stay within the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache-home"))


@pytest.fixture(scope="session")
def vqvae():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return VQVAE(
            TokenizerConfig(vocab_size=24, code_dim=8, channels=16, channel_multipliers=(1, 2), scales=(1, 2, 4))
        )


@pytest.fixture
def folder(tmp_path):
    """train with cats (3), dogs (2), owls (2), val with one each: images of 40x24 px, each of another colour."""
    root = tmp_path / "pictures"
    for split, counts in (("train", (3, 2, 2)), ("val", (1, 1, 1))):
        for c, (name, count) in enumerate(zip(("cats", "dogs", "owls"), counts, strict=True)):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                gradient = Image.linear_gradient("L").resize((40, 24))
                picture = Image.merge(
                    "RGB", (gradient, Image.new("L", (40, 24), 40 * c), Image.new("L", (40, 24), 60 * i))
                )
                picture.save(root / split / name / f"{i}.png")
    return root
