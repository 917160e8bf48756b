"""Interrupted equals uninterrupted, and several ranks equal one."""

from __future__ import annotations

import json
import signal

import pytest
import torch

from tests.helpers.trainee import IMAGES, RUN, TRAINING, curve, parameters, run_tokenizer_rank


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("world_size", [1, 2])
def test_kill_and_resume_give_the_same_bits(ranks, uninterrupted, tmp_path, world_size):
    """Killed at 128 images, in the fourth epoch of 40; the newest checkpoint, 96, is in the middle of an epoch."""
    assert 96 % IMAGES and 128 % RUN["checkpoint_images"]
    assert ranks(tmp_path, world_size, die_at=128) == [-signal.SIGKILL] * world_size
    assert not (tmp_path / "last.pt").exists()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["000000000048", "000000000096"]
    assert ranks(tmp_path, world_size) == [0] * world_size
    whole = curve(uninterrupted[world_size])
    points = curve(tmp_path)
    assert [images for images, _ in points] == [32, 64, 96, 128, 128, 160, 192]  # 128 was recorded and computed again
    assert points[3] == points[4]
    assert points[:3] + points[4:] == whole
    assert same_bits(parameters(tmp_path), parameters(uninterrupted[world_size]))


@pytest.mark.parametrize("world_size", [1, 2])
def test_stop_and_resume_give_the_same_bits(ranks, uninterrupted, tmp_path, world_size):
    """Requested on the last rank alone in the step to 80 images: all ranks save and end there."""
    assert ranks(tmp_path, world_size, stopped_at=80) == [0] * world_size
    assert not (tmp_path / "last.pt").exists()
    assert max(path.name for path in (tmp_path / "checkpoints").iterdir()) == "000000000080"
    assert [images for images, _ in curve(tmp_path)] == [32, 64]
    assert ranks(tmp_path, world_size) == [0] * world_size
    assert curve(tmp_path) == curve(uninterrupted[world_size])
    assert same_bits(parameters(tmp_path), parameters(uninterrupted[world_size]))


def test_two_runs_give_the_same_bits(ranks, uninterrupted, tmp_path):
    assert ranks(tmp_path, 1) == [0]
    assert curve(tmp_path) == curve(uninterrupted[1])
    assert same_bits(parameters(tmp_path), parameters(uninterrupted[1]))


def seen(directory, world_size: int) -> list:
    return [sorted(map(str, json.loads((directory / f"seen-{rank}.json").read_text()))) for rank in range(world_size)]


def test_ranks_share_images_and_noise(uninterrupted):
    """Row for row: the same tokens under the same label dropout and drop path, each once, half of them on each rank."""
    alone, (first, second) = seen(uninterrupted[1], 1)[0], seen(uninterrupted[2], 2)
    assert len(first) == len(second) == TRAINING["images"] / 2
    assert sorted(first + second) == alone


@pytest.mark.parametrize("world_size, accumulate", [(1, 4), (2, 1), (2, 2)])
def test_ranks_and_accumulation_equal_one_pass(ranks, uninterrupted, tmp_path, world_size, accumulate):
    """Same global batch: the curve agrees to float32's rounding, grown by 12 steps of AdamW."""
    directory = uninterrupted[2] if (world_size, accumulate) == (2, 1) else tmp_path
    if directory == tmp_path:
        assert ranks(tmp_path, world_size, accumulate=accumulate) == [0] * world_size
    for (images, values), (expected_images, expected) in zip(curve(directory), curve(uninterrupted[1]), strict=True):
        assert images == expected_images
        assert values == pytest.approx(expected, rel=2e-4)
    for name, value in parameters(uninterrupted[1]).items():
        torch.testing.assert_close(parameters(directory)[name], value, atol=2e-4, rtol=1e-3)


def test_divergence_on_one_rank_ends_all_ranks(ranks, tmp_path):
    """The fifth step, after 64 images: the rank whose loss is finite ends as well, instead of waiting for ever."""
    assert ranks(tmp_path, 2, diverging=1) == [0, 0]
    for rank in range(2):
        images, text = json.loads((tmp_path / f"diverged-{rank}.json").read_text())
        assert images == 64 and "not a finite number" in text


def test_tokenizer_on_two_ranks_equals_one(ranks, tmp_path):
    """Codes are counted over both ranks, restarted alike, and the first losses agree to rounding.

    Later a rounding can move a vector to another code, so the whole curve agrees less closely.
    """
    for world_size in (1, 2):
        assert ranks(tmp_path / str(world_size), world_size, target=run_tokenizer_rank) == [0] * world_size
    one, two = curve(tmp_path / "1"), curve(tmp_path / "2")
    assert two[0][1] == pytest.approx(one[0][1], rel=1e-3)
    for (images, values), (expected_images, expected) in zip(two, one, strict=True):
        assert images == expected_images and values["loss/total"] == pytest.approx(expected["loss/total"], rel=0.05)
    states = [torch.load(tmp_path / "2" / f"tokenizer-{rank}.pt", weights_only=True) for rank in range(2)]
    assert same_bits(*states)
