"""Inpainting with a VAR: a part of an image is known, the rest is sampled under a label, scale by scale.

In outpainting the known part is inside the box; class-conditional editing is inpainting under another label.

Legend: S image size, L positions, C code dimension, H, W the finest token map, N completions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from uvar_tune.errors import ConfigError
from uvar_tune.model.sampling import InpaintingConstraint, Samples, SamplingSettings, generate
from uvar_tune.model.scales import concat
from uvar_tune.model.var import VAR
from uvar_tune.model.vqvae import VQVAE


def inpaint(
    var: VAR,
    vqvae: VQVAE,
    image_3SS: torch.Tensor,
    known_SS: torch.Tensor,
    labels_N: torch.Tensor | Sequence[int],
    settings: SamplingSettings,
    *,
    seeds: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Samples:
    """Complete an image, once per label.

    A token is known if its cell is entirely in the known part; known tokens are kept at every scale. In the known
    cells of the finest scale the transformer sees the features of the image itself. Known pixels are returned as the
    tokenizer reconstructs them.

    Args:
        var: the transformer, in evaluation mode.
        vqvae: its tokenizer.
        image_3SS: in [0, 1], of the tokenizer's size.
        known_SS: bool, true where the pixel is known.
        labels_N: 0 … num_classes-1, or num_classes (unconditional), one per completion.
        settings: guidance, filters, temperature.
        seeds: as `generate`.
        progress: as `generate`.

    Raises:
        ConfigError: an image or a mask of another size, pixels outside [0, 1] or not finite, a mask that hides
            everything or nothing, or what `generate` refuses.
    """
    _check(vqvae, image_3SS, known_SS)
    device = vqvae.codebook_VC.device
    image_3SS, known_SS = image_3SS.to(device), known_SS.to(device)
    original = vqvae.encode(image_3SS[None].float() * 2 - 1)
    constraint = _constraint(vqvae, original, known_SS)
    images, tokens = generate(var, vqvae, labels_N, settings, seeds=seeds, constraint=constraint, progress=progress)
    reconstruction = vqvae.decode(original).add(1).mul(0.5)
    return Samples(torch.where(known_SS, reconstruction, images), tokens)


def box_mask(box: tuple[int, int, int, int], size: int, *, known: str) -> torch.Tensor:
    """(S, S) bool, true ``inside`` or ``outside`` (``known``) of the box (x0, y0, x1, y1), x1 and y1 exclusive.

    Raises:
        ConfigError: a box that is empty or extends beyond the image.
    """
    x0, y0, x1, y1 = box
    if not (0 <= x0 < x1 <= size and 0 <= y0 < y1 <= size):
        raise ConfigError(f"box {box} must have 0 <= x0 < x1 <= {size} and 0 <= y0 < y1 <= {size}", where="box")
    inside_SS = torch.zeros(size, size, dtype=torch.bool)
    inside_SS[y0:y1, x0:x1] = True
    return inside_SS if known == "inside" else ~inside_SS


def check_mask(vqvae: VQVAE, known_SS: torch.Tensor, where: str = "mask") -> None:
    """Raise ConfigError for a mask that hides everything or nothing, or leaves no token known."""
    if not known_SS.any():
        raise ConfigError("the mask hides everything: nothing of the image is known", where=where)
    if known_SS.all():
        raise ConfigError("the mask hides nothing: there is nothing to sample", where=where)
    if not _fully_known_cells(known_SS, vqvae.scales[-1]).any():
        cell = vqvae.image_size // vqvae.scales[-1]
        raise ConfigError(
            f"the mask leaves no whole cell of {cell} pixels known, the smallest area of a token", where=where
        )


@torch.no_grad()
def _constraint(vqvae: VQVAE, tokens: list[torch.Tensor], known_SS: torch.Tensor) -> InpaintingConstraint:
    maps = [_fully_known_cells(known_SS, side) for side in vqvae.scales]
    accumulated, features = vqvae.quantize.zeros(1), []
    for k, part in enumerate(tokens):
        accumulated = accumulated + vqvae.quantize.decode_scale(part, k)
        features.append(accumulated)
    known_1L = torch.cat([cells.flatten()[None] for cells in maps], dim=1)
    return InpaintingConstraint(concat(tokens), known_1L, features, maps[-1][None, None])


def _fully_known_cells(known_SS: torch.Tensor, side: int) -> torch.Tensor:
    """(side, side) bool: true where every pixel of the cell is known, also one shared with the next cell."""
    hidden = F.adaptive_max_pool2d((~known_SS)[None, None].float(), side)[0, 0]
    return hidden == 0


def _check(vqvae: VQVAE, image_3SS: torch.Tensor, known_SS: torch.Tensor) -> None:
    size = vqvae.image_size
    if tuple(image_3SS.shape) != (3, size, size):
        raise ConfigError(
            f"image of shape {tuple(image_3SS.shape)}, this tokenizer takes (3, {size}, {size})", where="image"
        )
    if not ((image_3SS >= 0) & (image_3SS <= 1)).all():  # false for NaN as well
        raise ConfigError("image holds pixels that are not in [0, 1]", where="image")
    if tuple(known_SS.shape) != (size, size) or known_SS.dtype != torch.bool:
        raise ConfigError(
            f"mask of shape {tuple(known_SS.shape)} and type {known_SS.dtype}, expected ({size}, {size}) bool, "
            "true where the image is known",
            where="mask",
        )
    check_mask(vqvae, known_SS)
