"""A set of labelled images of one size, in memory or decoded from files on access.

Shapes: N images, B selected ones, H = W = image_size; pixels are uint8.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch


class Pixels(Protocol):
    """uint8 images that can be indexed like a tensor (N, 3, H, W): by an integer, a slice or integers."""

    def __len__(self) -> int:
        """N."""
        ...

    def __getitem__(self, rows) -> torch.Tensor:
        """The images of these rows."""
        ...


@dataclass(frozen=True)
class ImageSet:
    """Images with labels.

    Attributes:
        images: uint8 (N, 3, H, W), a tensor or an object that decodes files when indexed; centre crops.
        labels_N: int64, 0 … len(class_names)-1.
        class_names: in the order of the labels.
        sha256: of content and recipe, 64 hex digits, independent of the machine.
        image_size: H = W.
        skipped: (path, reason) of corrupt files.
        notes: what was read and what was not, one line each.
    """

    images: Pixels
    labels_N: torch.Tensor
    class_names: list[str]
    sha256: str
    image_size: int
    skipped: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels_N)

    def crops(self, index_B: Sequence[int], crop_B: Sequence[int]) -> torch.Tensor:
        """uint8 (B, 3, H, W): the random crop with this number of each image; the image itself if it has no crops."""
        if isinstance(self.images, torch.Tensor):
            return self.images[torch.as_tensor(index_B)]
        return self.images.crops(index_B, crop_B)

    def with_notes(self, *notes: str) -> ImageSet:
        """The same set with further notes."""
        return dataclasses.replace(self, notes=(*self.notes, *notes))


def to_unit(images_B3HW: torch.Tensor) -> torch.Tensor:
    """uint8 pixels as float32 in [-1, 1]."""
    return images_B3HW.float() / 127.5 - 1
