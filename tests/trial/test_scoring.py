"""Labels of the samples that a checkpoint is scored on; which metrics are computed for what purpose."""

from __future__ import annotations

import pytest
import torch

from uvar_tune.config.schema import Config, DataConfig
from uvar_tune.data import load_images
from uvar_tune.evaluation import Features
from uvar_tune.trial.scoring import (
    GRID_IMAGES,
    CheckpointScorer,
    Samples,
    SampleScorer,
    _first_of_each_class,
    proportional_labels,
)


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


@pytest.fixture
def scorer(monkeypatch):
    """A scorer of random features, and the metrics that it computed at each point."""
    generator, computed = torch.Generator().manual_seed(0), []

    def features():
        return Features(torch.randn(64, 4, generator=generator), torch.randn(64, 3, generator=generator))

    class Scorer(SampleScorer):
        def __init__(self, config):
            self._config, self._seed, self._reference = config, 0, features()

        def features(self, samples):
            return features()

        def fidelity(self, features, **purpose):
            computed.append(super().fidelity(features, **purpose))
            return computed[-1]

    config = Config()
    checkpoint = CheckpointScorer(config, None, torch.nn.Identity(), None, {"sampling-a": 1, "sampling-b": 2})
    checkpoint.sample_scorer = Scorer(config)
    monkeypatch.setattr(checkpoint, "_sampler", lambda count: lambda *point: torch.zeros(count))
    return checkpoint, computed


def test_rungs_compute_their_metric_alone(scorer):
    checkpoint, computed = scorer
    value = checkpoint.rung_value()
    assert [set(scores) for scores in computed] == [{checkpoint.config.study.pruning_metric}] * len(computed)
    assert value == min(scores[checkpoint.config.study.pruning_metric] for scores in computed)


def test_only_evaluation_seeds_compute_all(scorer):
    checkpoint, computed = scorer
    selected = checkpoint.select()
    *selection, last = computed
    assert len(selection) > 2 and all(set(scores) == {checkpoint.config.study.metric} for scores in selection)
    assert set(last) == {"fid", "kid", "is", "is_std", "precision", "recall", "f1"} and selected.fidelity == last


def test_a_score_comes_with_those_it_needs(scorer):
    sample_scorer = scorer[0].sample_scorer
    assert set(sample_scorer.fidelity(sample_scorer.features(None), only="f1")) == {"precision", "recall", "f1"}


def test_sample_grid_is_bounded():
    labels_N = torch.arange(100).repeat(12)
    images = _first_of_each_class(Samples(labels_N[:, None, None, None], labels_N, labels_N), 10).flatten()
    assert torch.equal(images, torch.arange(GRID_IMAGES // 10).repeat_interleave(10))
