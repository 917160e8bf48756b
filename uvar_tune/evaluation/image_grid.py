"""Grids of images as PNG files. N images, H, W their size."""

from __future__ import annotations

from pathlib import Path

import torch

from uvar_tune.errors import ConfigError


def grid(images_N3HW: torch.Tensor, columns: int, *, margin: int = 2) -> torch.Tensor:
    """One uint8 image (3, rows·(H+margin)+margin, columns·(W+margin)+margin), row by row, white between the images.

    Args:
        images_N3HW: uint8, or floats in [0, 1].
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


def save_grid(images_N3HW: torch.Tensor, path: str | Path, *, columns: int, least_pixels: int = 480) -> Path:
    """Write the grid as PNG, small images enlarged without blurring until the picture is ``least_pixels`` wide.

    Raises:
        ConfigError: the file cannot be written.
    """
    from PIL import Image

    picture = Image.fromarray(grid(images_N3HW.cpu(), columns).permute(1, 2, 0).numpy())
    factor = max(1, -(-least_pixels // picture.width))
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST).save(
            path, format="PNG"
        )
    except OSError as error:
        raise ConfigError(f"cannot be written: {error}", where=str(path)) from None
    return path
