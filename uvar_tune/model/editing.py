"""In-painting with a VAR: a part of an image is known, the rest is sampled under a label, scale by scale.

Out-painting is the same with the known part inside; class editing is in-painting under another label.

Legend: S image size, L positions, C code dimension, H, W the finest token map, N completions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from uvar_tune.errors import ConfigError
from uvar_tune.model.sampling import Inference, Known, sample
from uvar_tune.model.scales import concat, split
from uvar_tune.model.var import VAR
from uvar_tune.model.vqvae import VQVAE


def inpaint(
    var: VAR,
    vqvae: VQVAE,
    image_3SS: torch.Tensor,
    known_SS: torch.Tensor,
    label: int,
    *,
    cfg_scale: float,
    count: int = 1,
    top_k: int = 0,
    top_p: float = 0.0,
    temperature: float = 1.0,
    cfg_ramp: float = 1.0,
    seeds: Sequence[int] | None = None,
    chunk: int | None = None,
    return_tokens: bool = False,
    progress: Callable[[int, int], None] | None = None,
):
    """``count`` completions (N, 3, S, S) in [0, 1] of the image's known part.

    A token is known where its cell lies in the known part altogether; known tokens are kept at every scale. In the known
    cells of the finest scale the transformer is shown the features of the image itself, and the known pixels come back
    as the tokenizer reconstructs them.

    Args:
        image_3SS: in [0, 1], of the tokenizer's size.
        known_SS: bool, true where the pixel is known.
        label: 0 … num_classes-1, or num_classes (unconditional).
        cfg_scale, top_k, top_p, temperature, cfg_ramp, seeds, chunk, return_tokens, progress: as `generate`.

    Raises:
        ConfigError: an image or a mask of another size, pixels outside [0, 1] or not finite, a mask that hides everything
            or nothing, or what `generate` refuses.
    """
    _check(vqvae, image_3SS, known_SS)
    if count < 1:
        raise ConfigError(f"count {count} is below 1", where="count", nearest="1")
    device = vqvae.codebook_VC.device
    image_3SS, known_SS = image_3SS.to(device), known_SS.to(device)
    original = vqvae.encode(image_3SS[None].float() * 2 - 1)
    known = _known(vqvae, original, known_SS)
    inference = Inference(cfg_scale, top_k, top_p, temperature, cfg_ramp)
    images, tokens_NL = sample(
        var, vqvae, torch.full((count,), label), inference, seeds=seeds, chunk=chunk, known=known, progress=progress
    )
    reconstruction = vqvae.decode(original).add(1).mul(0.5)
    images = torch.where(known_SS, reconstruction, images)
    return (images, split(tokens_NL, var.scales)) if return_tokens else images


def box_mask(box: tuple[int, int, int, int], size: int, *, known: str) -> torch.Tensor:
    """(S, S) bool, true ``inside`` or ``outside`` (``known``) of the box (x0, y0, x1, y1), x1 and y1 exclusive.

    Raises:
        ConfigError: a box that is empty or reaches beyond the image.
    """
    x0, y0, x1, y1 = box
    if not (0 <= x0 < x1 <= size and 0 <= y0 < y1 <= size):
        raise ConfigError(f"box {box} must have 0 <= x0 < x1 <= {size} and 0 <= y0 < y1 <= {size}", where="box")
    inside_SS = torch.zeros(size, size, dtype=torch.bool)
    inside_SS[y0:y1, x0:x1] = True
    return inside_SS if known == "inside" else ~inside_SS


def check_known(vqvae: VQVAE, known_SS: torch.Tensor, where: str = "mask") -> None:
    """ConfigError for a mask that hides everything or nothing, or leaves no token known."""
    if not known_SS.any():
        raise ConfigError("the mask hides everything: nothing of the image is known", where=where)
    if known_SS.all():
        raise ConfigError("the mask hides nothing: there is nothing to sample", where=where)
    if not _whole_cells(known_SS, vqvae.scales[-1]).any():
        raise ConfigError(
            f"the mask leaves no whole cell of {vqvae.image_size // vqvae.scales[-1]} pixels known, the "
            "finest that a token stands for",
            where=where,
        )


@torch.no_grad()
def _known(vqvae: VQVAE, tokens: list[torch.Tensor], known_SS: torch.Tensor) -> Known:
    maps = [_whole_cells(known_SS, side) for side in vqvae.scales]
    explained, features = vqvae.quantize.empty(1), []
    for k, part in enumerate(tokens):
        explained = explained + vqvae.quantize.explain(part, k)
        features.append(explained)
    known_1L = torch.cat([cells.flatten()[None] for cells in maps], dim=1)
    return Known(concat(tokens), known_1L, features, maps[-1][None, None])


def _whole_cells(known_SS: torch.Tensor, side: int) -> torch.Tensor:
    """(side, side) bool: the cells of which every pixel, even one shared with the next cell, is known."""
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
    check_known(vqvae, known_SS)
