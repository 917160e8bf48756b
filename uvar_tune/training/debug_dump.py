"""The step at which a training ended, on disk, to be looked at and computed again.

``batch.safetensors``: ``tokens_BL``, ``labels_B`` and the noise (``label_drop_B``, ``path_keep``) of all ranks' images, in the
order of the data. ``var.safetensors``: the parameters that met them; left out where these are no finite numbers any more, or
where memory ran out. ``manifest.json``: the images seen before, why it ended, the tokenizer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from uvar_tune.data import Order, TokenCache
from uvar_tune.errors import Diverged, StepFailed
from uvar_tune.io.manifest import write_directory
from uvar_tune.training.var_stage import batch_at

FAILED_STEP = "failed_step"  # beside metrics.jsonl


def dump_failed_batch(
    directory: str | Path, error: StepFailed, var, cache: TokenCache, *, seed: int, batch_size: int, tokenizer: str
) -> Path:
    """Write the step that ``error`` tells of below a trial's directory; where.

    Args:
        var: the bare model, its parameters as they were when the step failed.
        seed, batch_size: those of the training.
    """
    from safetensors.torch import save_file

    positions = range(error.images, error.images + batch_size)
    tokens_BL, labels_B, noise = batch_at(
        positions, var, cache, Order(cache.images, seed=seed, crops=cache.crops), seed
    )
    batch = {"tokens_BL": tokens_BL, "labels_B": labels_B, **noise}
    writers: dict[str, Any] = {"batch.safetensors": lambda path: save_file(_whole(batch), path)}
    if isinstance(error, Diverged) and all(bool(torch.isfinite(parameter).all()) for parameter in var.parameters()):
        writers["var.safetensors"] = lambda path: save_file(_whole(var.state_dict()), path)
    place = Path(directory) / FAILED_STEP
    write_directory(
        place, writers, {"images": error.images, "batch_size": batch_size, "reason": str(error), "tokenizer": tokenizer}
    )
    return place


def _whole(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """On the CPU, contiguous, none sharing memory with another, as safetensors wants them."""
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}
