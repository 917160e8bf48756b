"""Guidance, top-k and top-p filters, and inverse-CDF sampling from given uniform numbers.

Legend: B batch, l positions of one scale, V codes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from uvar_tune.errors import ConfigError

CFG_CONVENTION = "t_k = cfg*(k/(K-1))^ramp, 0 = off; ramp 1 = VAR's, 0 = the same at every scale"


def guidance(cfg_scale: float, k: int, K: int, ramp: float = 1.0) -> float:
    """Strength t at scale k (from 0) in (1+t)·conditional - t·unconditional. A single scale gets the full strength."""
    return cfg_scale * (k / (K - 1) if K > 1 else 1.0) ** ramp


def filter_logits(logits: torch.Tensor, top_k: int = 0, top_p: float = 0.0) -> torch.Tensor:
    """``logits`` (…, V) with -inf where removed. Equal logits are kept or removed together.

    Args:
        logits: any leading dimensions.
        top_k: keep logits that are at least the k-th largest; 0 = off.
        top_p: of the rest, remove the least likely while their probabilities sum to at most 1 - p; 0 = off. The most
            likely is always kept.

    Raises:
        ConfigError: top_k outside 0 … V, or top_p outside [0, 1].
    """
    validate_filter(top_k, top_p, logits.shape[-1])
    lowest = threshold(logits, top_k, top_p)
    return logits.clone() if lowest is None else logits.masked_fill(logits < lowest, -torch.inf)


def threshold(logits: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor | None:
    """(…, 1): the least logit that `filter_logits` keeps; None if it keeps all."""
    vocab_size = logits.shape[-1]
    if top_k in (0, vocab_size) and top_p == 0:
        return None
    largest = _ascending(logits, top_k or vocab_size)
    lowest = largest[..., :1]
    if top_p > 0:
        weight = (largest - largest[..., -1:]).exp()
        mass = weight.cumsum(-1)
        if top_k:  # several logits may equal the k-th largest: all are removed, or none
            count = _at_least(logits, lowest).sum(-1, keepdim=True, dtype=torch.float32)
            mass += (count - largest.shape[-1]) * weight[..., :1]
        removed = torch.searchsorted(mass, (1 - top_p) * mass[..., -1:], right=True)
        lowest = largest.gather(-1, removed.clamp_max(largest.shape[-1] - 1))
    return lowest


def _at_least(logits: torch.Tensor, lowest: torch.Tensor) -> torch.Tensor:
    """1 if a logit is at least ``lowest``, else 0, in the type of the logits, which is faster on a CPU than bool."""
    return torch.ge(logits, lowest, out=torch.empty_like(logits))


def _ascending(logits: torch.Tensor, count: int) -> torch.Tensor:
    """The ``count`` largest logits, smallest first."""
    if logits.device.type != "cpu":
        return logits.topk(count, dim=-1).values.flip(-1)
    # On a CPU NumPy sorts float32 about twenty times faster than PyTorch, which also sorts indices.
    values = (logits.float() if logits.dtype == torch.bfloat16 else logits).detach().numpy()
    if count < values.shape[-1] // 2:  # beyond half, sorting all is faster than partitioning
        values = np.partition(values, values.shape[-1] - count, axis=-1)[..., -count:]
    return torch.from_numpy(np.sort(values, axis=-1)[..., -count:]).to(logits.dtype)


def draw(logits_BlV: torch.Tensor, uniform_Bl: torch.Tensor, top_k: int = 0, top_p: float = 0.0) -> torch.Tensor:
    """Tokens (B, l) by inverse-CDF sampling.

    Args:
        logits_BlV: any finite or -inf values.
        uniform_Bl: in [0, 1).
        top_k: as `filter_logits`.
        top_p: as `filter_logits`.
    """
    lowest = threshold(logits_BlV, top_k, top_p)
    weight_BlV = logits_BlV.softmax(-1)
    if lowest is not None:
        weight_BlV *= _at_least(logits_BlV, lowest)
    total_BlV = weight_BlV.cumsum(-1)
    end_Bl1 = total_BlV[..., -1:]
    # Below the total even after rounding, so that no token of probability 0 after the last possible one is drawn.
    target_Bl1 = torch.minimum(uniform_Bl[..., None] * end_Bl1, torch.nextafter(end_Bl1, torch.zeros_like(end_Bl1)))
    return torch.searchsorted(total_BlV, target_Bl1, right=True)[..., 0]


def validate_filter(top_k: int, top_p: float, vocab_size: int, spell: Callable[[str], str] = str) -> None:
    """Raise ConfigError for a filter out of range; ``spell`` maps a field name to its name in the message."""
    if not 0 <= top_k <= vocab_size:
        raise ConfigError(
            f"{top_k} is not in 0 … {vocab_size}, the vocabulary (0 = off)",
            where=spell("top_k"),
            nearest=str(vocab_size) if top_k > vocab_size else "0",
        )
    if not 0 <= top_p <= 1:
        raise ConfigError(
            f"{top_p} is not in [0, 1] (0 = off)", where=spell("top_p"), nearest="1" if top_p > 1 else "0"
        )
