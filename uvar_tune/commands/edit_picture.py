"""The picture of an edit: original, what was known of it, completions; a row for each checkpoint, captions above.

Legend: S image size, N completions.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from uvar_tune.errors import ConfigError

_CELL, _MARGIN, _FONT, _LINE = 128, 8, 13, 17  # pixels: least side of an image as shown, gap, letters, line
_VEIL_3 = (0.96, 0.62, 0.2)  # shown where nothing was known


@dataclass(frozen=True)
class Row:
    """Completions (N, 3, S, S) in [0, 1] by one checkpoint; ``name`` stands in the captions, ``about`` in the title."""

    name: str
    about: str
    images_N3SS: torch.Tensor


def save_picture(
    path: str | Path, image_3SS: torch.Tensor, known_SS: torch.Tensor, rows: list[Row], *, first_seed: int, title: str
) -> Path:
    """Write the picture as PNG; completion i carries the seed ``first_seed + i``.

    Raises:
        ConfigError: the file cannot be written.
    """
    veil_3SS = torch.tensor(_VEIL_3)[:, None, None].expand_as(image_3SS)
    given = {"original": image_3SS, "known part": torch.where(known_SS, image_3SS, veil_3SS)}
    lines = [
        [
            *(given.items() if i == 0 else [("", None)] * len(given)),
            *((f"{row.name}, seed {first_seed + n}", image) for n, image in enumerate(row.images_N3SS)),
        ]
        for i, row in enumerate(rows)
    ]
    canvas = _drawn(lines, [title, *(f"{row.name}: {row.about}" for row in rows)])
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        canvas.save(path, format="PNG")
    except OSError as error:
        raise ConfigError(f"cannot be written: {error}", where=str(path)) from None
    return path


def _drawn(lines: list[list[tuple[str, torch.Tensor | None]]], titles: list[str]) -> Image.Image:
    """Rows of (caption, image), under the titles, wrapped to the width."""
    size = lines[0][0][1].shape[-1]
    side = size * max(1, -(-_CELL // size))
    font = ImageFont.load_default(_FONT)
    width = _MARGIN + max(len(line) for line in lines) * (side + _MARGIN)
    letters = int((width - 2 * _MARGIN) / font.getlength("n"))
    titles = [part for title in titles for part in textwrap.wrap(title, letters)]
    top = 2 * _MARGIN + len(titles) * _LINE
    canvas = Image.new("RGB", (width, top + len(lines) * (side + _LINE + _MARGIN)), "white")
    draw = ImageDraw.Draw(canvas)
    for i, title in enumerate(titles):
        draw.text((_MARGIN, _MARGIN + i * _LINE), title, fill="black", font=font)
    for row, line in enumerate(lines):
        y = top + row * (side + _LINE + _MARGIN)
        for column, (caption, image) in enumerate(line):
            if image is None:
                continue
            x = _MARGIN + column * (side + _MARGIN)
            draw.text((x, y), caption, fill="black", font=font)
            canvas.paste(_shown(image, side), (x, y + _LINE))
    return canvas


def _shown(image_3SS: torch.Tensor, side: int) -> Image.Image:
    pixels = (image_3SS * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(np.ascontiguousarray(pixels)).resize((side, side), Image.Resampling.NEAREST)
