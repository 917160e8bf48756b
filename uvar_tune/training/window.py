"""Values of the steps since the last report, kept on the device until they are asked for: no step waits for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

from uvar_tune.errors import Diverged


class Window:
    """Legend: S steps, M values (``names``).

    Rows are averaged over ranks and checked when they are settled; what is settled is the same on all ranks.
    """

    def __init__(self, names: Sequence[str], world_size: int):
        self.names, self._world_size = tuple(names), world_size
        self._fresh: list[torch.Tensor] = []
        self._settled_SM = torch.empty(0, len(self.names))

    def add(self, row_M: torch.Tensor) -> None:
        self._fresh.append(row_M)

    def settle(self, seen: int, batch_size: int) -> None:
        """Average the fresh rows over ranks.

        Raises:
            Diverged: a value is not finite, with the images seen before its step.
        """
        if not self._fresh:
            return
        rows_SM = torch.stack(self._fresh)
        if self._world_size > 1:
            dist.all_reduce(rows_SM)
            rows_SM /= self._world_size
        rows_SM, self._fresh = rows_SM.cpu(), []
        broken = (~torch.isfinite(rows_SM)).nonzero()
        if len(broken):
            step, column = broken[0].tolist()
            raise Diverged(
                f"{self.names[column]} is {rows_SM[step, column].item()}",
                images=seen - (len(rows_SM) - step) * batch_size,
            )
        self._settled_SM = torch.cat([self._settled_SM, rows_SM])

    def take(self) -> dict[str, float]:
        """Means over the settled steps, which are then forgotten."""
        mean_M = self._settled_SM.double().mean(0)
        self._settled_SM = self._settled_SM[:0]
        return dict(zip(self.names, mean_M.tolist(), strict=True))

    def settled(self) -> torch.Tensor:
        return self._settled_SM

    def load(self, settled_SM: torch.Tensor) -> None:
        self._settled_SM = settled_SM


def on_all_ranks(mine: Sequence[bool], world_size: int, device: torch.device) -> list[bool]:
    """Of each, whether it holds on every rank."""
    if world_size == 1:
        return list(mine)
    flags = torch.tensor([float(one) for one in mine], device=device)
    dist.all_reduce(flags, op=dist.ReduceOp.MIN)
    return [bool(flag) for flag in flags.tolist()]
