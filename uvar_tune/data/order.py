"""Which image stands where: position p of a training (images seen before it) → image, crop.

Each epoch is a permutation of its own, drawn from (seed, epoch). Batches are consecutive positions and may run over the
end of an epoch, so no image is dropped or seen twice, and nothing depends on ranks or batch size: a rank takes its
positions out of the batch, and to resume is to go on at a position.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from uvar_tune import seeds
from uvar_tune.errors import ConfigError

ORDER, CROPS = 0, 1  # what is drawn, beside the noise of a step (training.loop)


def epoch_order(count: int, *, seed: int, epoch: int) -> torch.Tensor:
    """The permutation of 0 … count-1 in which epoch ``epoch`` sees the images, int64."""
    return torch.randperm(count, generator=seeds.generator(seed, ORDER, epoch))


class Order:
    """The endless order of a set of images.

    Args:
        count: images of the set.
        crops: crops of each image, one of which is drawn for each image and epoch.
    """

    def __init__(self, count: int, *, seed: int, crops: int = 1):
        if count < 1:
            raise ConfigError("there are no images to order", where="data")
        self.count, self.seed, self.crops = count, seed, crops
        self._epochs: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def at(self, positions: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """(index_B, crop_B) of the images at these positions, int64."""
        position_B = torch.as_tensor(positions)
        epoch_B, place_B = position_B // self.count, position_B % self.count
        parts = [(self._epoch(epoch), place_B[epoch_B == epoch]) for epoch in epoch_B.unique().tolist()]
        index_B, crop_B = torch.empty_like(position_B), torch.empty_like(position_B)
        for epoch, ((order_N, crop_N), place) in zip(epoch_B.unique().tolist(), parts, strict=True):
            index_B[epoch_B == epoch] = order_N[place]
            crop_B[epoch_B == epoch] = crop_N[place]
        return index_B, crop_B

    def _epoch(self, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        if epoch not in self._epochs:
            self._epochs = {known: pair for known, pair in self._epochs.items() if known == epoch - 1}
            crop_N = torch.randint(self.crops, (self.count,), generator=seeds.generator(self.seed, CROPS, epoch))
            self._epochs[epoch] = epoch_order(self.count, seed=self.seed, epoch=epoch), crop_N
        return self._epochs[epoch]


def check_positions(*, images: int, batch_size: int, shares: int, count: int) -> None:
    """ConfigError unless ``images`` are whole batches, a batch is ``shares`` equal parts, and the data hold a batch.

    Args:
        shares: ranks x accumulation.
        count: images of the data.
    """
    for what, value, unit, by in (
        ("training images", images, batch_size, "the batch"),
        ("batch size", batch_size, shares, "ranks x accumulate"),
    ):
        if value < 1 or value % unit:
            low = value // unit * unit
            near = [number for number in (low, low + unit) if number > 0]
            raise ConfigError(
                f"{what} {value} is not a whole multiple of {by} {unit}; the nearest: " + " or ".join(map(str, near)),
                where="training",
                nearest=str(near[0]),
            )
    if count < batch_size:
        raise ConfigError(
            f"{count} images are fewer than a batch of {batch_size}", where="training.batch_size", nearest=str(count)
        )
