"""Checks of everything that a trial would refuse: images, feature network, tokenizer, initial weights, precision."""

from __future__ import annotations

from typing import Any

import torch

from uvar_tune.config.schema import Config
from uvar_tune.data import ImageSet
from uvar_tune.errors import ConfigError
from uvar_tune.evaluation import open_extractor
from uvar_tune.evaluation.fidelity import SMALLEST_SET
from uvar_tune.training.config import resolve_precision
from uvar_tune.trial.factory import load_split, new_var, open_tokenizer

SPLITS = ("train", "validation")


def check_inputs(config: Config) -> None:
    """Check everything that the trials of a study need from the machine they run on. Nothing is trained or stored.

    Images are decoded, and weights are loaded, so this runs in a process with the resources of a worker.

    Raises:
        ConfigError: an input is missing, damaged, too small or does not fit; or the device lacks a precision.
    """
    device = torch.device("cuda" if config.run.gpus_per_worker else "cpu")
    for precision in _values(config, "training.precision"):
        resolve_precision(precision, device)
    images = {split: load_split(config, split) for split in SPLITS}
    check_image_counts(config, images)
    if config.evaluation.extractor != "digits" or config.evaluation.weights is not None:
        open_extractor(config.evaluation.extractor, weights=config.evaluation.weights)
    tokenizer = open_tokenizer(config.tokenizer.path, config) if config.tokenizer.path else config.tokenizer
    if config.training.init_from is not None:
        new_var(config, tokenizer, len(images["train"].class_names), seed=0)


def check_image_counts(config: Config, images: dict[str, ImageSet]) -> None:
    """Check that the splits are as large as a batch and as the metrics need.

    Args:
        config: of the study; every value of the search space counts.
        images: split → its images.

    Raises:
        ConfigError: a split is too small.
    """
    count = len(images["train"])
    batches = {"training.batch_size": max(_values(config, "training.batch_size"))}
    if config.tokenizer.path is None:
        batches["tokenizer.batch_size"] = config.tokenizer.batch_size
    for name, size in batches.items():
        if count < size:
            raise ConfigError(
                f"{count} training images are fewer than a batch of {size}", where=name, nearest=str(count)
            )
    split = config.evaluation.reference_split
    if len(images[split]) < SMALLEST_SET:
        raise ConfigError(
            f"the {split} split has {len(images[split])} images; as reference of the metrics it needs at least "
            f"{SMALLEST_SET}",
            where="evaluation.reference_split",
        )


def _values(config: Config, name: str) -> list[Any]:
    """The values that trials may have: the bounds or choices of the space, else the configuration's own."""
    entry = config.space.get(name)
    return entry.edges() if entry is not None else [config.get(name)]
