"""The bench of training: every side with either source of tokens, the columns agree with each other, the official side."""

from __future__ import annotations

import json
import os

import pytest
import torch

from uvar_tune.bench.__main__ import main
from uvar_tune.bench.model import SMALL
from uvar_tune.bench.train import EPOCH_IMAGES, SIDES, TOKENS, configuration, random_images, run
from uvar_tune.config.schema import ModelConfig
from uvar_tune.model import VAR

CHECKOUT = os.environ.get("UVAR_OFFICIAL_VAR")


def check(rows: list[dict], official: bool) -> None:
    expected = [(side, tokens) for tokens in TOKENS for side in SIDES] + [("official", "each step")] * official
    assert [(row["side"], row["tokens"]) for row in rows] == expected
    by_key = {(row["side"], row["tokens"]): row for row in rows}
    for (side, tokens), row in by_key.items():
        assert row["images_per_sec"] == pytest.approx(SMALL["batch"] / row["step_sec"], rel=0.05)
        assert row["epoch_sec"] == pytest.approx(EPOCH_IMAGES / SMALL["batch"] * row["step_sec"], rel=0.05)
        if side != "official":
            assert row["to_baseline"] == pytest.approx(
                row["step_sec"] / by_key["baseline", tokens]["step_sec"], rel=0.1
            )
        assert ("ratio" in row) == (official and side != "official")
        assert row["threads"] == 1 and row["length"] == 5 and "load" in row and "device" in row
    json.dumps(rows, allow_nan=False)


def test_the_small_bench_of_our_sides(capsys):
    before = torch.get_num_threads()
    assert main(["train", "--small", "--repeats", "1", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    check(rows, official=False)
    assert torch.get_num_threads() == before
    sizes = {key: SMALL[key] for key in ("scales", "vocab_size", "code_dim", "depth", "width", "heads", "num_classes")}
    model = ModelConfig(**{key: sizes.pop(key) for key in ("depth", "width", "heads")})
    count = sum(p.numel() for p in VAR(model, **sizes).parameters())
    for row in rows:
        assert row["parameters_m"] == pytest.approx(count / 1e6, abs=1e-3) and row["batch_size"] == SMALL["batch"]
        assert (
            16 * count < row["memory_gib"] * 2**30 < 16 * count + 2**26
        )  # weights, gradients, two moments, and the step's own


def test_images_and_configuration_agree():
    config, images = configuration(SMALL), random_images(SMALL, 3)
    assert images.images.shape == (3, 3, config.data.image_size, config.data.image_size)
    assert len(images.class_names) == SMALL["num_classes"] and images.labels_N.max() < SMALL["num_classes"]


@pytest.mark.skipif(not CHECKOUT, reason="UVAR_OFFICIAL_VAR does not name a checkout of FoundationVision/VAR")
def test_the_small_bench_of_all_sides():
    check(run(small=True, repeats=1, official=CHECKOUT), official=True)


def test_what_is_no_checkout_is_refused(capsys, tmp_path):
    assert main(["train", "--small", "--official", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"--official {tmp_path}: is not a checkout of FoundationVision/VAR" in line
