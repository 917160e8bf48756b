"""The token cache against encoding: a batch read from the cache, and the same batch tokenised.

CPU seconds of the process, one thread; the sides alternate. Reading is that of a training step: positions of the data
order, rows of the memory map (in the system's page cache), int64 tokens and labels as tensors. The row with the teacher
input adds the transformer's input, which both sides compute from the tokens.
"""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from uvar_tune.bench.model import FULL, SMALL
from uvar_tune.bench.train import configuration, random_images
from uvar_tune.data import Order, TokenCache, build_token_cache
from uvar_tune.data.image_set import to_unit
from uvar_tune.model.scales import split
from uvar_tune.trial.factory import new_vqvae

_IMAGES_A_BATCH, _READS = 16, 20  # batches in the set; one read is too short for the clock


def run(*, small: bool = False, repeats: int = 7) -> list[dict]:
    """Rows `tokens` and `tokens and teacher input` (images per CPU second of both sides, their ratio) and `building`.

    Args:
        small: a size that takes seconds.
        repeats: alternated measurements of each side, after one warm-up.
    """
    shape, threads = SMALL if small else FULL, torch.get_num_threads()
    batch = shape["batch"]
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            vqvae = new_vqvae(configuration(shape)).eval().requires_grad_(False)
            images = random_images(shape, _IMAGES_A_BATCH * batch)
            began = time.process_time()
            cache = build_token_cache(Path(folder) / "tokens", images, vqvae, batch=batch)
            building = (time.process_time() - began) / len(images)
            times = _alternated(_sides(cache, images, vqvae, batch), repeats)
    finally:
        torch.set_num_threads(threads)
    machine = {
        "machine": platform.machine(),
        "threads": 1,
        "load": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "repeats": repeats,
        "batch": batch,
        "image_size": images.image_size,
        "length": cache.tokens_NL.shape[1],
        "vocab_size": cache.vocab_size,
    }
    rows = [
        {
            "part": part,
            "cache_images_per_sec": round(batch / times[part, "cache"], 1),
            "encoder_images_per_sec": round(batch / times[part, "encoder"], 2),
            "ratio": round(times[part, "encoder"] / times[part, "cache"], 1),
            **machine,
        }
        for part, side in times
        if side == "cache"
    ]
    return [*rows, {"part": "building", "encoder_images_per_sec": round(1 / building, 2), **machine}]


def _sides(cache: TokenCache, images, vqvae, batch: int) -> dict[tuple[str, str], tuple[Callable[[int], object], int]]:
    """(part, side) → (function of the position of a batch, runs per measurement)."""
    order = Order(cache.images, seed=0, crops=cache.crops)

    def read(first: int) -> tuple[torch.Tensor, torch.Tensor]:
        index_B, crop_B = order.at(range(first, first + batch))
        row_B = (index_B * cache.crops + crop_B).numpy()
        return torch.from_numpy(cache.tokens_NL[row_B].astype(np.int64)), torch.from_numpy(cache.labels_N[row_B])

    def pixels(first: int) -> torch.Tensor:
        index_B, crop_B = order.at(range(first, first + batch))
        return to_unit(images.crops(index_B, crop_B))

    return {
        ("tokens", "cache"): (read, _READS),
        ("tokens", "encoder"): (lambda first: vqvae.encode(pixels(first)), 1),
        ("tokens and teacher input", "cache"): (
            lambda first: vqvae.teacher_input(split(read(first)[0], vqvae.scales)),
            2,
        ),
        ("tokens and teacher input", "encoder"): (
            lambda first: vqvae.encode(pixels(first), with_teacher_input=True),
            1,
        ),
    }


def _alternated(
    sides: dict[tuple[str, str], tuple[Callable[[int], object], int]], repeats: int
) -> dict[tuple[str, str], float]:
    """The median CPU seconds of one batch."""
    batches: dict[tuple[str, str], list[float]] = {key: [] for key in sides}
    for repeat in range(repeats + 1):
        for key in sorted(sides, reverse=bool(repeat % 2)):
            work, runs = sides[key]
            began = time.process_time()
            for turn in range(runs):
                work(repeat * runs + turn)
            batches[key].append((time.process_time() - began) / runs)
    return {key: statistics.median(values[1:]) for key, values in batches.items()}
