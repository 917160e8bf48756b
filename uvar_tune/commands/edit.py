"""Editing of an image by a checkpoint, and by a baseline for comparison: inpainting, outpainting, relabelling.

    image, mask or box ─► known pixels ─┬─ checkpoint ─► completions ─┐
                                        └─ baseline ─► completions ───┴─► one picture

Legend: S the model's image size, N completions.
"""

from __future__ import annotations

import logging
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from uvar_tune.console import progress_callback
from uvar_tune.data import resolve_label
from uvar_tune.data.folder import read_image
from uvar_tune.data.verification import UNREADABLE
from uvar_tune.errors import ConfigError, choose
from uvar_tune.model import VAR, VQVAE, SamplingSettings, box_mask, inpaint
from uvar_tune.model.editing import check_mask
from uvar_tune.model.sampling import as_option
from uvar_tune.pipeline import fit_image, open_networks

logger = logging.getLogger(__name__)

TASKS = ("inpaint", "outpaint", "relabel")
_WHITE = 128  # grey level from which a pixel of the mask counts as white
_CELL, _MARGIN, _FONT, _LINE = 128, 8, 13, 17  # pixels: least side of a drawn image, gap, font size, line height
_VEIL_3 = (0.96, 0.62, 0.2)  # colour of unknown pixels


@dataclass(frozen=True)
class Request:
    """An edit as requested on the command line.

    Attributes:
        task: one of `TASKS`.
        checkpoint: its directory; None with official files.
        image: file.
        out: PNG file to write.
        mask: image file, white where pixels are sampled; excludes ``box``.
        box: "x0,y0,x1,y1" in the model's pixels; excludes ``mask``.
        label: name or number of the class; None samples unconditionally.
        count: completions.
        seed: of the first completion; each further one has the next.
        baseline: checkpoint directory of a second row.
        sampling: fields of `SamplingSettings`.
        networks: keyword arguments of `open_networks`.
    """

    task: str
    checkpoint: str | None
    image: str
    out: str
    mask: str | None
    box: str | None
    label: str | None
    count: int
    seed: int
    baseline: str | None
    sampling: dict[str, float]
    networks: dict[str, str | None]


@dataclass(frozen=True)
class Row:
    """Completions (N, 3, S, S) in [0, 1] by one checkpoint.

    Attributes:
        name: in the captions.
        description: of the checkpoint, in the title.
        images_N3SS: the completions.
    """

    name: str
    description: str
    images_N3SS: torch.Tensor


@dataclass(frozen=True)
class _Networks:
    name: str
    var: VAR
    vqvae: VQVAE
    description: str
    label: int


def run_edit(request: Request) -> None:
    """Sample the completions and write the picture.

    Raises:
        ConfigError: an unknown task; a checkpoint, image, mask or box that cannot be used, or that hides everything or
            nothing; an unknown label; a baseline of another image size; a sampling setting out of range.
    """
    check_request(request)
    sides = [_open(request, "checkpoint", request.checkpoint, request.networks)]
    size = sides[0].vqvae.image_size
    image_3SS, known_SS, fit = read_request(request, size)
    if request.baseline is not None:
        sides.append(_open(request, "baseline", request.baseline, {"device": request.networks["device"]}))
        if (other := sides[1].vqvae.image_size) != size:
            raise ConfigError(f"makes images of {other} px, the checkpoint of {size} px", where="--baseline")
    settings = SamplingSettings(**request.sampling)
    for side in sides:
        settings.validate(side.var.vocab_size, as_option)
        check_mask(
            side.vqvae, known_SS, f"--box {request.box}" if request.box is not None else f"--mask {request.mask}"
        )
    rows = [_complete(request, side, image_3SS, known_SS, settings) for side in sides]
    label = "no label" if request.label is None else f"label {request.label}"
    summary = f"{request.task}, {label}, {settings.describe_guidance()}"
    save_picture(request.out, image_3SS, known_SS, rows, first_seed=request.seed, title=f"{summary}, image {fit}")
    logger.info(
        f"{request.out}: {request.count} completions of {request.image}, {summary}; "
        + "; ".join(f"{side.name} {side.description}" for side in sides)
    )


def check_request(request: Request) -> None:
    """Verify what needs no network.

    Raises:
        ConfigError: as `run_edit`.
    """
    task = choose(request.task, TASKS, "task", "command line")
    if (request.mask is None) == (request.box is None):
        raise ConfigError("give either --mask or --box, to say what is kept and what is sampled", where="command line")
    if task == "relabel" and request.label is None:
        raise ConfigError("relabel needs --label, the new class", where="--label")
    if request.box is not None:
        parse_box(request.box)
    for path in (request.image, request.mask):
        if path is not None:
            _read(path)


def _open(request: Request, name: str, checkpoint: str | None, arguments: dict[str, str | None]) -> _Networks:
    var, vqvae, description = open_networks(checkpoint, **arguments)
    label = var.num_classes
    if request.label is not None:
        label = resolve_label(request.label, var.class_names, var.num_classes)
    return _Networks(name, var, vqvae, description, label)


def _complete(
    request: Request, side: _Networks, image_3SS: torch.Tensor, known_SS: torch.Tensor, settings: SamplingSettings
) -> Row:
    images_N3SS, _ = inpaint(
        side.var,
        side.vqvae,
        image_3SS,
        known_SS,
        [side.label] * request.count,
        settings,
        seeds=[request.seed + i for i in range(request.count)],
        progress=progress_callback(f"{side.name}, completions", request.count),
    )
    return Row(side.name, side.description, images_N3SS.cpu())


def read_request(request: Request, size: int) -> tuple[torch.Tensor, torch.Tensor, str]:
    """Read image and mask.

    Args:
        request: names the files, or the box.
        size: S.

    Returns:
        The image (3, S, S) in [0, 1]; the known pixels (S, S) bool; how `fit_image` changed the image, for a title.

    Raises:
        ConfigError: files that are no images, a mask of another size, a box beyond the image.
    """
    image = _read(request.image)
    image_3SS = torch.from_numpy(np.array(fit_image(image, size))).permute(2, 0, 1).float() / 255
    fit = "as it is" if image.size == (size, size) else f"{image.width}x{image.height} px cut to {size}x{size}"
    if request.box is not None:
        known = "inside" if request.task == "outpaint" else "outside"
        known_SS = box_mask(parse_box(request.box, size), size, known=known)
    else:
        known_SS = _read_mask(request.mask, image, size)
    return image_3SS, known_SS, fit


def _read_mask(path: str, image: Image.Image, size: int) -> torch.Tensor:
    """The pixels that the mask leaves known, (S, S) bool."""
    mask = _read(path)
    if mask.size not in (image.size, (size, size)):
        raise ConfigError(
            f"mask of {mask.width}x{mask.height} px for an image of {image.width}x{image.height} px; it must "
            f"have the image's size, or {size}x{size} px",
            where=path,
        )
    hidden_SS = torch.from_numpy(np.array(fit_image(mask, size).convert("L"))) >= _WHITE
    return ~hidden_SS


def parse_box(text: str, size: int | None = None) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1) from "x0,y0,x1,y1".

    Args:
        text: as on the command line.
        size: S, if it is known.

    Raises:
        ConfigError: not four whole numbers, or a box that is empty or extends beyond the image.
    """
    try:
        x0, y0, x1, y1 = (int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            f"{text!r} is not x0,y0,x1,y1: four whole numbers of pixels, x1 and y1 exclusive", where="--box"
        ) from None
    if not (0 <= x0 < x1 and 0 <= y0 < y1) or (size is not None and max(x1, y1) > size):
        end = "" if size is None else f" <= {size}"
        raise ConfigError(f"{text!r} must have 0 <= x0 < x1{end} and 0 <= y0 < y1{end}", where="--box")
    return x0, y0, x1, y1


def _read(path: str) -> Image.Image:
    if not Path(path).is_file():
        raise ConfigError("there is no such file", where=path)
    try:
        return read_image(Path(path))
    except UNREADABLE as error:
        raise ConfigError(f"is not an image that can be read ({error})", where=path) from None


def save_picture(
    path: str | Path, image_3SS: torch.Tensor, known_SS: torch.Tensor, rows: list[Row], *, first_seed: int, title: str
) -> Path:
    """Write a PNG: original, known part and completions; one row per checkpoint, captions above.

    Args:
        path: file to write.
        image_3SS: the original, in [0, 1].
        known_SS: bool, its known pixels.
        rows: completions.
        first_seed: completion i has the seed ``first_seed + i``.
        title: above the rows, wrapped to the width.

    Raises:
        ConfigError: the file cannot be written.
    """
    veil_3SS = torch.tensor(_VEIL_3)[:, None, None].expand_as(image_3SS)
    originals = [("original", image_3SS), ("known part", torch.where(known_SS, image_3SS, veil_3SS))]
    lines = [
        [
            *(originals if i == 0 else [("", None)] * len(originals)),
            *((f"{row.name}, seed {first_seed + n}", image) for n, image in enumerate(row.images_N3SS)),
        ]
        for i, row in enumerate(rows)
    ]
    canvas = _draw(lines, [title, *(f"{row.name}: {row.description}" for row in rows)])
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        canvas.save(path, format="PNG")
    except OSError as error:
        raise ConfigError(f"cannot be written: {error}", where=str(path)) from None
    return path


def _draw(lines: list[list[tuple[str, torch.Tensor | None]]], titles: list[str]) -> Image.Image:
    """Rows of (caption, image) below the titles, which are wrapped to the width."""
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
            canvas.paste(_enlarge(image, side), (x, y + _LINE))
    return canvas


def _enlarge(image_3SS: torch.Tensor, side: int) -> Image.Image:
    pixels = (image_3SS * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(np.ascontiguousarray(pixels)).resize((side, side), Image.Resampling.NEAREST)
