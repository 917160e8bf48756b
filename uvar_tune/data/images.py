"""The data sets by name: handwritten digits, or a folder of images."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Sequence

import torch
from torch.nn import functional

from uvar_tune import seeds
from uvar_tune.config.schema import DataConfig
from uvar_tune.data.classes import select_classes
from uvar_tune.data.folder import load_folder
from uvar_tune.data.image_set import ImageSet
from uvar_tune.errors import choose

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation")
_HELD_OUT = 0.2  # share of the digits of each class
_SPLIT_SEED = 20_240_229  # constant: the split is part of the data


def load_images(config: DataConfig, split: str) -> ImageSet:
    """One split of a data set: the digits (1,797 real images, part of scikit-learn), or a folder of images.

    What was read, and what was not, is logged once per process.

    Args:
        config: the `data` section. Digits are 8x8 and enlarged bilinearly; files are resized and cropped.
        split: `train` or `validation`.

    Raises:
        ConfigError: no such split or folder, a class that is missing or empty, images that cannot be read.
    """
    choose(split, SPLITS, "split", "split")
    if config.name == "digits":
        return _digits(split, config.image_size, config.classes)
    images = load_folder(config, split)
    for note in images.notes:
        _log_once(note)
    return images


@functools.cache
def _log_once(note: str) -> None:
    logger.info(note)


def _digits(split: str, size: int, classes: Sequence[str] | None) -> ImageSet:
    from sklearn.datasets import load_digits

    data = load_digits()
    names = [str(digit) for digit in data.target_names]
    selected = select_classes(names, classes, "the digits")
    labels_N = torch.as_tensor(data.target).long()
    rows_N = _split_rows(labels_N, split)
    rows_N = rows_N[torch.isin(labels_N[rows_N], torch.tensor([names.index(name) for name in selected]))]
    grey_N1HW = torch.as_tensor(data.images[rows_N.numpy()], dtype=torch.float32)[:, None] * (255 / 16)
    if size != grey_N1HW.shape[-1]:
        grey_N1HW = functional.interpolate(grey_N1HW, size=(size, size), mode="bilinear", antialias=size < 8)
    images_N3HW = grey_N1HW.round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    renumbered = torch.tensor([selected.index(name) if name in selected else -1 for name in names])
    labels_N = renumbered[labels_N[rows_N]]
    digest = hashlib.sha256(repr(("digits", split, size, selected)).encode())
    digest.update(images_N3HW.numpy().tobytes() + labels_N.numpy().tobytes())
    return ImageSet(images_N3HW, labels_N, selected, digest.hexdigest(), size)


def _split_rows(labels_N: torch.Tensor, split: str) -> torch.Tensor:
    """Rows of a split, ascending; the same share of each class is held out."""
    parts = []
    for label in labels_N.unique().tolist():
        rows = (labels_N == label).nonzero().flatten()
        rows = rows[torch.randperm(len(rows), generator=seeds.generator(_SPLIT_SEED, label))]
        held_out = round(_HELD_OUT * len(rows))
        parts.append(rows[:held_out] if split == "validation" else rows[held_out:])
    return torch.cat(parts).sort().values
