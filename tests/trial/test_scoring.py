"""Labels of the samples that a checkpoint is scored on."""

from __future__ import annotations

import pytest
import torch

from uvar_tune.config.schema import DataConfig
from uvar_tune.data import load_images
from uvar_tune.trial.scoring import proportional_labels


def test_balanced_labels_cycle_through_classes():
    labels = torch.arange(4).repeat_interleave(25)
    assert torch.equal(proportional_labels(labels, 40, 4), torch.arange(40) % 4)


@pytest.mark.parametrize("count", [1, 7, 100, 999])
def test_labels_follow_the_reference_proportions(count):
    sizes = torch.tensor([600, 300, 99, 1])
    labels = proportional_labels(torch.arange(4).repeat_interleave(sizes), count, 4)
    expected = sizes.double() * count / sizes.sum()
    assert len(labels) == count and (torch.bincount(labels, minlength=4) - expected).abs().max() < 1
    assert torch.equal(labels, proportional_labels(torch.arange(4).repeat_interleave(sizes).flip(0), count, 4))


def test_digits_are_nearly_balanced():
    """143 or so of each digit: the labels of 1,000 samples differ from 100 of each by 2 at most."""
    counts = torch.bincount(proportional_labels(load_images(DataConfig(), "train").labels_N, 1000, 10))
    assert counts.sum() == 1000 and counts.min() >= 97 and counts.max() <= 102
