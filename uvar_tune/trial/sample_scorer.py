"""Samples of a checkpoint and what they are worth: drawn by all ranks, judged on rank 0 under one protocol.

Legend: N samples, H, W image size, L positions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from uvar_tune.config.schema import Config
from uvar_tune.evaluation import (
    Features,
    conditional_accuracy,
    density_coverage,
    fidelity_protocol,
    open_extractor,
    reference_features,
    scores_from_features,
    to_uint8,
)
from uvar_tune.model import CFG_CONVENTION, SamplingSettings, generate
from uvar_tune.specs import Assets
from uvar_tune.trial.factory import load_split


class Sampler:
    """Draws this rank's share of the samples and gathers all on rank 0, in index order.

    Args:
        samples: how many; labels go round the classes.
        seeds: purpose → seed; sample i is drawn from the purpose's seed + i, whatever rank draws it.
    """

    def __init__(
        self,
        config: Config,
        var,
        vqvae,
        *,
        samples: int,
        seeds: dict[str, int],
        rank: int = 0,
        world_size: int = 1,
        device="cpu",
    ):
        self._config, self._var, self._vqvae, self._seeds = config, var, vqvae, seeds
        self._rank, self._world_size, self._device = rank, world_size, device
        self.labels_N = torch.arange(samples) % var.num_classes
        self.tokens_NL: torch.Tensor | None = None  # of the last call, on rank 0 complete

    def __call__(self, point: dict[str, float], purpose: str) -> torch.Tensor:
        """uint8 images_N3HW, complete on rank 0, at an inference point ({cfg_scale, …}; the rest from the configuration)."""
        count = len(self.labels_N)
        share = -(-count // self._world_size)
        mine = torch.arange(self._rank * share, (self._rank + 1) * share) % count  # padded: every rank has as many
        base = self._seeds[purpose] % 2**62
        images, tokens = generate(
            self._var,
            self._vqvae,
            self.labels_N[mine].to(self._device),
            SamplingSettings.from_config(self._config.inference, **point),
            seeds=[base + int(i) for i in mine],
            chunk=self._config.evaluation.chunk,
        )
        self.tokens_NL = gather(torch.cat(tokens, 1), self._world_size)[:count].cpu()
        return gather(to_uint8(images), self._world_size)[:count].cpu()


class SampleScorer:
    """Scores of uint8 samples against the reference split."""

    def __init__(self, config: Config, assets: Assets, *, cache: Path, seed: int, device="cpu"):
        evaluation = config.evaluation
        reference = load_split(config, evaluation.reference_split)
        self._config, self._seed = config, seed
        self.extractor = open_extractor(
            evaluation.extractor, weights=evaluation.weights or assets.classifier, device=str(device)
        )
        self._knows_classes = assets.classifier is not None  # the feature network is a classifier of these very labels
        self._reference = reference_features(reference, self.extractor, cache_root=cache / "features")
        self._about = {
            "reference": reference,
            "resizer": f"native {config.data.image_size}",
            "cfg_convention": CFG_CONVENTION,
        }

    def protocol(self, samples: int) -> dict[str, Any]:
        """Under what rules scores of so many samples are made."""
        about = dict(self._about)
        return fidelity_protocol(self.extractor, about.pop("reference"), samples=samples, **about).as_dict()

    def __call__(self, samples_N3HW: torch.Tensor) -> dict[str, float]:
        """The metrics of the configuration that follow from the features of the samples."""
        return self.scores(self.extractor(samples_N3HW))

    def scores(self, features: Features) -> dict[str, float]:
        return scores_from_features(features, self._reference, metrics=self._config.evaluation.metrics, seed=self._seed)

    def details(self, features: Features, labels_N: torch.Tensor) -> dict[str, float]:
        """What the chosen point is scored with besides: density, coverage and, by a classifier, the accuracy."""
        found = density_coverage(features.features_NF, self._reference.features_NF)
        if self._knows_classes:
            found["conditional_accuracy"] = conditional_accuracy(features.logits_NY, labels_N)
        return found


def current_protocol(config: Config, assets: Assets, cache: Path) -> dict[str, Any]:
    """Under what rules a network that is scored here and now is scored."""
    return SampleScorer(config, assets, cache=cache, seed=0).protocol(config.evaluation.samples)


def gather(part: torch.Tensor, world_size: int) -> torch.Tensor:
    """The parts of all ranks, one behind the other."""
    if world_size == 1:
        return part
    parts = [torch.empty_like(part) for _ in range(world_size)]
    torch.distributed.all_gather(parts, part.contiguous())
    return torch.cat(parts)


def from_rank_0(value, world_size: int):
    """Rank 0's plain value, on every rank."""
    if world_size == 1:
        return value
    shared = [value]
    torch.distributed.broadcast_object_list(shared, src=0)
    return shared[0]
