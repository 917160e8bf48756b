"""The bench of the token cache: both sides hand over the same tokens, and the rows agree with themselves."""

from __future__ import annotations

import json

import pytest
import torch

from uvar_tune.bench.__main__ import main
from uvar_tune.bench.data import _sides
from uvar_tune.bench.model import SMALL
from uvar_tune.bench.train import configuration, random_images
from uvar_tune.data import build_token_cache
from uvar_tune.trial.factory import new_vqvae


def test_the_small_bench(capsys):
    assert main(["data", "--small", "--repeats", "1", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["part"] for row in rows] == ["tokens", "tokens and teacher input", "building"]
    for row in rows[:2]:
        assert row["ratio"] == pytest.approx(row["cache_images_per_sec"] / row["encoder_images_per_sec"], rel=0.02)
    assert all(
        row["encoder_images_per_sec"] > 0 and row["batch"] == SMALL["batch"] and "machine" in row for row in rows
    )


def test_both_sides_are_the_same_tokens(tmp_path):
    vqvae = new_vqvae(configuration(SMALL)).eval().requires_grad_(False)
    torch.nn.init.normal_(vqvae.codebook_VC, generator=torch.Generator().manual_seed(1))
    images = random_images(SMALL, 12)
    sides = _sides(build_token_cache(tmp_path / "tokens", images, vqvae, batch=4), images, vqvae, 4)
    for first in (0, 6, 10):
        tokens_BL, labels_B = sides["tokens", "cache"][0](first)
        encoded = sides["tokens", "encoder"][0](first)
        assert torch.equal(tokens_BL, torch.cat(encoded, 1)) and len(labels_B) == 4 and tokens_BL.unique().numel() > 2
        given = sides["tokens and teacher input", "encoder"][0](first)[1]
        torch.testing.assert_close(sides["tokens and teacher input", "cache"][0](first), given)
