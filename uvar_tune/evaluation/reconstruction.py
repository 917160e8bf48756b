"""Reconstruction of held-out images by a tokenizer: error, codes in use, and a picture.

Legend: B images of a chunk, K scales, V codes.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist

from uvar_tune.data import ImageSet
from uvar_tune.data.image_set import to_unit
from uvar_tune.evaluation.image_grid import save_grid
from uvar_tune.model import VQVAE
from uvar_tune.training.tokenizer_stage import CodeUsage

_CHUNK, _PICTURES = 64, 16


@torch.no_grad()
def reconstruction(vqvae: VQVAE, images: ImageSet, *, rank: int = 0, world_size: int = 1) -> dict[str, float]:
    """Encode and decode images. Each rank processes its share of them, and all get the same result.

    Args:
        vqvae: the tokenizer.
        images: held-out images.
        rank: of this process.
        world_size: number of processes.

    Returns:
        `reconstruction_mse` (pixels in [-1, 1]), `codes_in_use` (a count), `code_usage` and `code_usage/scale_k`
        (shares of the codebook).
    """
    usage, device = CodeUsage(vqvae, world_size), vqvae.codebook_VC.device
    squared = torch.zeros((), dtype=torch.float64, device=device)
    for start in range(rank * _CHUNK, len(images), world_size * _CHUNK):
        pixels = to_unit(torch.as_tensor(images.images[start : start + _CHUNK]).to(device))
        tokens = vqvae.encode(pixels)
        squared += (vqvae.decode(tokens) - pixels).square().mean(dim=(1, 2, 3)).sum()
        usage.add(tokens)
    usage.synchronize()
    if world_size > 1:
        dist.all_reduce(squared)
    return {
        "reconstruction_mse": float(squared) / len(images),
        "codes_in_use": float((usage.counts_KV > 0).any(0).sum()),
        **usage.shares(),
    }


@torch.no_grad()
def picture(vqvae: VQVAE, images: ImageSet, path: Path) -> Path:
    """Write a PNG of images spread evenly over the set, each above its reconstruction."""
    rows = torch.linspace(0, len(images) - 1, min(_PICTURES, len(images))).round().long().tolist()
    originals_BCHW = to_unit(torch.stack([torch.as_tensor(images.images[row]) for row in rows])).to(
        vqvae.codebook_VC.device
    )
    both = torch.cat([originals_BCHW, vqvae.decode(vqvae.encode(originals_BCHW))])
    return save_grid((both + 1) / 2, path, columns=len(rows))
