"""The failed step of a training on disk, for inspection and replay.

``batch.safetensors``: ``tokens_BL``, ``labels_B`` and the noise (``label_drop_B``, ``path_keep``) of all ranks' images,
in the order of the data. ``var.safetensors``: the parameters at that step, unless they are not finite or memory ran
out. ``manifest.json``: images seen before the step, the reason, the tokenizer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from uvar_tune.data import Order, TokenCache
from uvar_tune.errors import Diverged, StepFailed
from uvar_tune.io.manifest import write_directory
from uvar_tune.training.checkpoint import separate_tensors
from uvar_tune.training.var_stage import batch_at

FAILED_STEP = "failed_step"  # directory, next to metrics.jsonl


def dump_failed_batch(
    directory: str | Path, error: StepFailed, var, cache: TokenCache, *, seed: int, batch_size: int, tokenizer: str
) -> Path:
    """Write the step that raised ``error`` below a trial's directory.

    Args:
        directory: of the trial.
        error: that ended the training.
        var: the model without its data-parallel wrapper, with the parameters of that step.
        cache: tokens of the training split.
        seed: of the training.
        batch_size: of the training, over all ranks.
        tokenizer: path of the tokenizer.

    Returns:
        The directory written.
    """
    from safetensors.torch import save_file

    positions = range(error.images, error.images + batch_size)
    tokens_BL, labels_B, noise = batch_at(
        positions, var, cache, Order(cache.images, seed=seed, crops=cache.crops), seed
    )
    batch = {"tokens_BL": tokens_BL, "labels_B": labels_B, **noise}
    writers: dict[str, Any] = {"batch.safetensors": lambda path: save_file(separate_tensors(batch), path)}
    if isinstance(error, Diverged) and all(bool(torch.isfinite(parameter).all()) for parameter in var.parameters()):
        writers["var.safetensors"] = lambda path: save_file(separate_tensors(var.state_dict()), path)
    path = Path(directory) / FAILED_STEP
    write_directory(
        path, writers, {"images": error.images, "batch_size": batch_size, "reason": str(error), "tokenizer": tokenizer}
    )
    return path
