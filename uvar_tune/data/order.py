"""Data order: position p of a training (the number of images seen before) → image and crop.

Each epoch is a permutation drawn from (seed, epoch). Batches are consecutive positions and may cross the end of an
epoch, so no image is dropped or repeated within an epoch, and nothing depends on ranks or batch size: a rank takes its
positions from the batch, and a resumed training continues at a position.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from uvar_tune import seeds
from uvar_tune.errors import ConfigError

ORDER, CROPS = 0, 1  # purposes of the draws; training.loop has a third, the noise of a step


def epoch_order(count: int, *, seed: int, epoch: int) -> torch.Tensor:
    """The order of the images in an epoch: a permutation of 0 … count-1, int64."""
    return torch.randperm(count, generator=seeds.generator(seed, ORDER, epoch))


class Order:
    """The endless order of a set of images.

    Args:
        count: images of the set.
        seed: of the training.
        crops: crops per image, one of which is drawn for each image and epoch.
    """

    def __init__(self, count: int, *, seed: int, crops: int = 1):
        if count < 1:
            raise ConfigError("there are no images to order", where="data")
        self.count, self.seed, self.crops = count, seed, crops
        self._epochs: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def at(self, positions: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """(index_B, crop_B) of the images at these positions, int64."""
        position_B = torch.as_tensor(positions)
        epoch_B, offset_B = position_B // self.count, position_B % self.count
        parts = [(self._epoch(epoch), offset_B[epoch_B == epoch]) for epoch in epoch_B.unique().tolist()]
        index_B, crop_B = torch.empty_like(position_B), torch.empty_like(position_B)
        for epoch, ((order_N, crop_N), offset) in zip(epoch_B.unique().tolist(), parts, strict=True):
            index_B[epoch_B == epoch] = order_N[offset]
            crop_B[epoch_B == epoch] = crop_N[offset]
        return index_B, crop_B

    def _epoch(self, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        if epoch not in self._epochs:
            self._epochs = {epoch - 1: self._epochs[epoch - 1]} if epoch - 1 in self._epochs else {}
            crop_N = torch.randint(self.crops, (self.count,), generator=seeds.generator(self.seed, CROPS, epoch))
            self._epochs[epoch] = epoch_order(self.count, seed=self.seed, epoch=epoch), crop_N
        return self._epochs[epoch]


def spread_rows(labels_N: torch.Tensor, count: int) -> torch.Tensor:
    """Rows of a sample that represents a set: evenly spread over the set sorted by class, ascending.

    Args:
        labels_N: class of each row of the set.
        count: size of the sample; all rows if the set has fewer.
    """
    labels_N = torch.as_tensor(labels_N).long()
    count = min(count, len(labels_N))
    by_class_N = labels_N.argsort(stable=True)
    return by_class_N[torch.arange(count) * len(labels_N) // max(count, 1)].sort().values


def check_positions(*, images: int, batch_size: int, shares: int, count: int) -> None:
    """Verify that the sizes of a training divide.

    Args:
        images: of the training, a multiple of the batch.
        batch_size: global, a multiple of ``shares`` and at most ``count``.
        shares: ranks x accumulation steps.
        count: images of the data set.

    Raises:
        ConfigError: with the nearest valid number.
    """
    for name, value, unit, unit_name in (
        ("training images", images, batch_size, "the batch"),
        ("batch size", batch_size, shares, "ranks x accumulate"),
    ):
        if value < 1 or value % unit:
            low = value // unit * unit
            near = [number for number in (low, low + unit) if number > 0]
            raise ConfigError(
                f"{name} {value} is not a whole multiple of {unit_name} {unit}; the nearest: "
                + " or ".join(map(str, near)),
                where="training",
                nearest=str(near[0]),
            )
    if count < batch_size:
        raise ConfigError(
            f"{count} images are fewer than a batch of {batch_size}", where="training.batch_size", nearest=str(count)
        )
