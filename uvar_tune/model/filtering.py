"""From logits to tokens: guidance, top-k, top-p, and a draw from given uniform numbers.

Legend: B batch, l positions of one scale, V codes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from uvar_tune.errors import ConfigError

CFG_CONVENTION = "t_k = cfg*(k/(K-1))^ramp, 0 = off; ramp 1 = VAR's, 0 = the same at every scale"


def guidance(cfg_scale: float, k: int, K: int, ramp: float = 1.0) -> float:
    """t of scale k (from 0): states become (1+t)·conditional - t·unconditional. A single scale gets all of it."""
    return cfg_scale * (k / (K - 1) if K > 1 else 1.0) ** ramp


def filter_logits(logits: torch.Tensor, top_k: int = 0, top_p: float = 0.0) -> torch.Tensor:
    """``logits`` (…, V) with -inf where removed. Equal logits are kept or removed together.

    Args:
        top_k: keep what is at least the k-th largest. 0 = off.
        top_p: of what is left, remove the least likely as long as they sum to at most 1 - p; the best stays. 0 = off.

    Raises:
        ConfigError: top_k outside 0 … V, or top_p outside [0, 1].
    """
    check_filter(top_k, top_p, logits.shape[-1])
    lowest = lowest_kept(logits, top_k, top_p)
    return logits.clone() if lowest is None else logits.masked_fill(logits < lowest, -torch.inf)


def lowest_kept(logits: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor | None:
    """(…, 1): the least logit that `filter_logits` keeps; None where it keeps all."""
    vocabulary = logits.shape[-1]
    if top_k in (0, vocabulary) and top_p == 0:
        return None
    largest = _ascending(logits, top_k or vocabulary)
    lowest = largest[..., :1]
    if top_p > 0:
        weight = (largest - largest[..., -1:]).exp()
        mass = weight.cumsum(-1)
        if top_k:  # more than k logits are left where several equal the k-th largest; all are removed or none
            count = _at_least(logits, lowest).sum(-1, keepdim=True, dtype=torch.float32)
            mass += (count - largest.shape[-1]) * weight[..., :1]
        removed = torch.searchsorted(mass, (1 - top_p) * mass[..., -1:], right=True)
        lowest = largest.gather(-1, removed.clamp_max(largest.shape[-1] - 1))
    return lowest


def _at_least(logits: torch.Tensor, lowest: torch.Tensor) -> torch.Tensor:
    """1 where a logit is at least ``lowest``, else 0, in the logits' type (on a CPU a multiple faster than from booleans)."""
    return torch.ge(logits, lowest, out=torch.empty_like(logits))


def _ascending(logits: torch.Tensor, count: int) -> torch.Tensor:
    """The ``count`` largest logits, smallest first."""
    if logits.device.type != "cpu":
        return logits.topk(count, dim=-1).values.flip(-1)
    # NumPy sorts float32 about twenty times faster than PyTorch does on a CPU, which sorts indices along.
    values = (logits.float() if logits.dtype == torch.bfloat16 else logits).detach().numpy()
    if count < values.shape[-1] // 2:  # sorting all costs less than setting the larger half apart
        values = np.partition(values, values.shape[-1] - count, axis=-1)[..., -count:]
    return torch.from_numpy(np.sort(values, axis=-1)[..., -count:]).to(logits.dtype)


def draw(logits_BlV: torch.Tensor, uniform_Bl: torch.Tensor, top_k: int = 0, top_p: float = 0.0) -> torch.Tensor:
    """Tokens (B, l): where the cumulative probability passes each uniform number in [0, 1); filtered as `filter_logits`."""
    lowest = lowest_kept(logits_BlV, top_k, top_p)
    weight_BlV = logits_BlV.softmax(-1)
    if lowest is not None:
        weight_BlV *= _at_least(logits_BlV, lowest)
    total_BlV = weight_BlV.cumsum(-1)
    end_Bl1 = total_BlV[..., -1:]
    # Below the end even after rounding, so that no token of probability 0 behind the last possible one is taken.
    aim_Bl1 = torch.minimum(uniform_Bl[..., None] * end_Bl1, torch.nextafter(end_Bl1, torch.zeros_like(end_Bl1)))
    return torch.searchsorted(total_BlV, aim_Bl1, right=True)[..., 0]


def check_filter(top_k: int, top_p: float, vocabulary: int, spell: Callable[[str], str] = str) -> None:
    if not 0 <= top_k <= vocabulary:
        raise ConfigError(
            f"{top_k} is not in 0 … {vocabulary}, the vocabulary (0 = off)",
            where=spell("top_k"),
            nearest=str(vocabulary) if top_k > vocabulary else "0",
        )
    if not 0 <= top_p <= 1:
        raise ConfigError(
            f"{top_p} is not in [0, 1] (0 = off)", where=spell("top_p"), nearest="1" if top_p > 1 else "0"
        )
