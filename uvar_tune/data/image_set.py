"""A set of labelled images of one size, in memory or read from files when asked for.

Shapes: N images, B chosen ones, H = W = image_size; pixels are uint8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from uvar_tune.errors import ConfigError, nearest


class Pixels(Protocol):
    """uint8 images that can be indexed like a tensor (N, 3, H, W): a number, a slice, or integers."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows) -> torch.Tensor: ...


@dataclass(frozen=True)
class ImageSet:
    """Images with labels.

    Attributes:
        images: uint8 (N, 3, H, W), a tensor or something that reads files when indexed; centre crops.
        labels_N: int64, 0 … len(class_names)-1.
        class_names: in the order of the labels.
        sha256: of content and recipe, 64 hex digits: the same for the same images, whatever the machine.
        image_size: H = W.
        skipped: (path, why) of the files left out.
    """

    images: Pixels
    labels_N: torch.Tensor
    class_names: list[str]
    sha256: str
    image_size: int
    skipped: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.labels_N)

    def crops(self, index_B: Sequence[int], crop_B: Sequence[int]) -> torch.Tensor:
        """uint8 (B, 3, H, W): of each image, the random crop of this number; of images without crops, the image."""
        if isinstance(self.images, torch.Tensor):
            return self.images[torch.as_tensor(index_B)]
        return self.images.crops(index_B, crop_B)


def to_unit(images_B3HW: torch.Tensor) -> torch.Tensor:
    """uint8 pixels as float32 in [-1, 1]."""
    return images_B3HW.float() / 127.5 - 1


def chosen_classes(names: Sequence[str], classes: Sequence[str] | None, place: str) -> list[str]:
    """The classes to keep; ConfigError for one that ``place`` does not have or that is named twice."""
    if classes is None:
        return list(names)
    chosen = [str(name) for name in classes]
    for name in chosen:
        if name not in names:
            raise ConfigError(f"class {name!r} is not in {place}", where="data.classes", nearest=nearest(name, names))
    if not chosen or len(set(chosen)) < len(chosen):
        raise ConfigError(f"{chosen} must name at least one class, and each once", where="data.classes")
    return chosen
