"""The data sets by name: scikit-learn's handwritten digits, or a folder of images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch.nn import functional

from uvar_tune import seeds
from uvar_tune.data.folder import load_folder
from uvar_tune.data.image_set import ImageSet, chosen_classes
from uvar_tune.errors import ConfigError, choose

SPLITS = ("train", "validation")
_HELD_OUT = 0.2  # of the digits of each class
_SPLIT_SEED = 20_240_229  # fixed: the split is part of the data, no study moves it


def load_images(
    name: str,
    *,
    split: str,
    path: str | None = None,
    image_size: int = 16,
    classes: Sequence[str] | None = None,
    on_corrupt: str = "refuse",
) -> ImageSet:
    """One split of a data set.

    Args:
        name: `digits` (1,797 real images, inside scikit-learn) or `folder` (``path``/train|val/CLASS/IMAGE).
        split: `train` or `validation`.
        image_size: side in pixels. Digits are 8x8 and enlarged bilinearly; files are resized and cropped.
        classes: names to keep, labels in this order; None keeps all, sorted by name.
        on_corrupt: files that cannot be read: `refuse`, or `skip` them with a warning.

    Raises:
        ConfigError: unknown names, no such folder, a class that is missing or empty, images that cannot be read.
    """
    choose(name, ("digits", "folder"), "data set", "data.name")
    choose(split, SPLITS, "split", "split")
    choose(on_corrupt, ("refuse", "skip"), "treatment of corrupt images", "data.on_corrupt")
    if image_size < 1:
        raise ConfigError(f"image size {image_size} is below 1", where="data.image_size")
    if name == "digits":
        return _digits(split, image_size, classes)
    if path is None:
        raise ConfigError("a folder of images needs its path", where="data.path")
    return load_folder(path, split=split, image_size=image_size, classes=classes, on_corrupt=on_corrupt)


def _digits(split: str, size: int, classes: Sequence[str] | None) -> ImageSet:
    from sklearn.datasets import load_digits

    data = load_digits()
    names = [str(digit) for digit in data.target_names]
    chosen = chosen_classes(names, classes, "the digits")
    labels_N = torch.as_tensor(data.target).long()
    rows_N = _split_rows(labels_N, split)
    rows_N = rows_N[torch.isin(labels_N[rows_N], torch.tensor([names.index(name) for name in chosen]))]
    grey_N1HW = torch.as_tensor(data.images[rows_N.numpy()], dtype=torch.float32)[:, None] * (255 / 16)
    if size != grey_N1HW.shape[-1]:
        grey_N1HW = functional.interpolate(grey_N1HW, size=(size, size), mode="bilinear", antialias=size < 8)
    images_N3HW = grey_N1HW.round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    renumbered = torch.tensor([chosen.index(name) if name in chosen else -1 for name in names])
    labels_N = renumbered[labels_N[rows_N]]
    digest = hashlib.sha256(repr(("digits", split, size, chosen)).encode())
    digest.update(images_N3HW.numpy().tobytes() + labels_N.numpy().tobytes())
    return ImageSet(images_N3HW, labels_N, chosen, digest.hexdigest(), size)


def _split_rows(labels_N: torch.Tensor, split: str) -> torch.Tensor:
    """Rows of a split, ascending: of each class the same share is held out."""
    parts = []
    for label in labels_N.unique().tolist():
        rows = (labels_N == label).nonzero().flatten()
        rows = rows[torch.randperm(len(rows), generator=seeds.generator(_SPLIT_SEED, label))]
        held_out = round(_HELD_OUT * len(rows))
        parts.append(rows[:held_out] if split == "validation" else rows[held_out:])
    return torch.cat(parts).sort().values
