"""Copies of training images among samples, against a plain loop over all pairs."""

from __future__ import annotations

import numpy as np
import pytest

from uvar_tune.evaluation import copies
from uvar_tune.evaluation.copies import NEAR, copy_statistics

LENGTH, CODES, CLASSES = 24, 5, 3


@pytest.fixture
def tokens():
    """Random tokens and labels of training, held-out and sampled images."""
    random = np.random.default_rng(0)

    def draw(count):
        return random.integers(0, CODES, (count, LENGTH)).astype(np.uint16), random.integers(0, CLASSES, count)

    return {name: draw(count) for name, count in {"train": 90, "held_out": 40, "samples": 50}.items()}


def statistics(tokens):
    return copy_statistics(*tokens["samples"], *tokens["train"], *tokens["held_out"])


def nearest(rows, labels, training, training_labels):
    """The largest share of equal tokens with a training image of the class, pair by pair."""
    return np.array(
        [
            max((row == other).mean() for other, own in zip(training, training_labels, strict=True) if own == label)
            for row, label in zip(rows, labels, strict=True)
        ]
    )


def test_statistics_equal_those_of_all_pairs(tokens, monkeypatch):
    samples, labels = tokens["samples"]
    samples[:7] = tokens["train"][0][:7]
    labels[:7] = tokens["train"][1][:7]  # seven exact copies
    samples[:4, : LENGTH // 5] = CODES  # four of them differ in a sixth of the tokens
    mine = nearest(samples, labels, *tokens["train"])
    new = nearest(*tokens["held_out"], *tokens["train"])
    expected = {
        "copy_share": (mine >= NEAR).mean(),
        "copy_share/exact": (mine == 1).mean(),
        "copy_share/held_out": (new >= NEAR).mean(),
        "training_proximity": np.mean([[(a > b) + 0.5 * (a == b) for b in new] for a in mine]),
    }
    assert statistics(tokens) == pytest.approx(expected)
    assert expected["copy_share"] == 7 / 50 and expected["copy_share/exact"] == 3 / 50
    monkeypatch.setattr(copies, "_BLOCK_BYTES", 1)  # a row at a time
    assert statistics(tokens) == pytest.approx(expected)


def test_new_images_have_a_proximity_of_one_half(tokens):
    tokens["samples"] = tokens["held_out"]
    assert statistics(tokens)["training_proximity"] == pytest.approx(0.5)


def test_copies_of_another_class_do_not_count(tokens):
    rows, labels = tokens["train"]
    tokens["samples"] = (rows[:20], (labels[:20] + 1) % CLASSES)
    assert statistics(tokens)["copy_share"] == 0


def test_class_without_training_images_is_left_out(tokens):
    samples, labels = tokens["samples"]
    before = statistics(tokens)
    tokens["samples"] = (np.concatenate([samples, samples[:5]]), np.concatenate([labels, [CLASSES] * 5]))
    assert statistics(tokens) == before
