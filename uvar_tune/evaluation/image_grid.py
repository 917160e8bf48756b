"""Grids of images as PNG files.

Legend: N images of height H and width W.
"""

from __future__ import annotations

from pathlib import Path

import torch

from uvar_tune.errors import ConfigError


def grid(images_N3HW: torch.Tensor, columns: int, *, margin: int = 2) -> torch.Tensor:
    """Arrange images row by row on a white canvas.

    Args:
        images_N3HW: uint8, or floats in [0, 1].
        columns: images a row.
        margin: pixels between images and at the edges.

    Returns:
        uint8 of shape (3, rows·(H+margin)+margin, columns·(W+margin)+margin).
    """
    if images_N3HW.dtype != torch.uint8:
        images_N3HW = (images_N3HW * 255).round().clamp(0, 255).to(torch.uint8)
    count, _, height, width = images_N3HW.shape
    rows = -(-count // columns)
    canvas = torch.full(
        (3, rows * (height + margin) + margin, columns * (width + margin) + margin), 255, dtype=torch.uint8
    )
    for i, image in enumerate(images_N3HW):
        top, left = i // columns * (height + margin) + margin, i % columns * (width + margin) + margin
        canvas[:, top : top + height, left : left + width] = image
    return canvas


def save_grid(images_N3HW: torch.Tensor, path: str | Path, *, columns: int, min_pixels: int = 480) -> Path:
    """Write a grid of images as PNG and return its path.

    Args:
        images_N3HW: uint8, or floats in [0, 1].
        path: of the file.
        columns: images a row.
        min_pixels: a narrower grid is enlarged by a whole factor, without interpolation, to at least this width.

    Raises:
        ConfigError: the file cannot be written.
    """
    from PIL import Image

    image = Image.fromarray(grid(images_N3HW.cpu(), columns).permute(1, 2, 0).numpy())
    factor = max(1, -(-min_pixels // image.width))
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST).save(path, format="PNG")
    except OSError as error:
        raise ConfigError(f"cannot be written: {error}", where=str(path)) from None
    return path
