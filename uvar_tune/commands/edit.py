"""An image edited by a checkpoint, and by the baseline beside it: the paper's in-painting, out-painting and relabelling.

    image, mask or box ─► known pixels ─┬─ checkpoint ─► completions ─┐
                                        └─ baseline ─► completions ───┴─► one picture

Legend: S the model's image size, N completions.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from uvar_tune.commands.edit_picture import Row, save_picture
from uvar_tune.console import progress_callback
from uvar_tune.data.folder import read_image, shrink
from uvar_tune.data.verification import UNREADABLE
from uvar_tune.errors import ConfigError, choose
from uvar_tune.model import box_mask, inpaint
from uvar_tune.model.editing import check_mask
from uvar_tune.model.sampling import SamplingSettings, as_option
from uvar_tune.pipeline import open_networks

logger = logging.getLogger(__name__)

TASKS = ("inpaint", "outpaint", "relabel")
_HIDDEN = 128  # grey level from which a mask's pixel counts as white


@dataclass(frozen=True)
class Request:
    """What the door was asked; ``sampling`` are keyword arguments of `inpaint`, ``networks`` of `open_networks`."""

    task: str
    checkpoint: str | None
    image: str
    out: str
    mask: str | None
    box: str | None
    label: int | None
    count: int
    seed: int
    baseline: str | None
    sampling: dict[str, float]
    networks: dict[str, str | None]


def run_edit(request: Request) -> None:
    """Sample the completions and write the picture.

    Raises:
        ConfigError: an unknown task; a checkpoint, image, mask or box that cannot be used, or that hides everything or
            nothing; a label out of range; a baseline of another image size; an inference value that means nothing.
    """
    check(request)
    opened = [("checkpoint", *open_networks(request.checkpoint, **request.networks))]
    size = opened[0][2].image_size
    image_3SS, known_SS, seen = read_request(request, size)
    if request.baseline is not None:
        opened.append(("baseline", *open_networks(request.baseline, device=request.networks["device"])))
        if opened[1][2].image_size != size:
            raise ConfigError(
                f"makes images of {opened[1][2].image_size} px, the checkpoint of {size} px", where="--baseline"
            )
    settings = SamplingSettings(**request.sampling)
    for name, var, vqvae, _ in opened:
        settings.validate(var.vocab_size, as_option)
        check_mask(vqvae, known_SS, f"--box {request.box}" if request.box is not None else f"--mask {request.mask}")
        if request.label is not None and not 0 <= request.label < var.num_classes:
            raise ConfigError(
                f"label {request.label} is not one of the {name}'s 0 … {var.num_classes - 1}", where="--label"
            )
    rows = [_completed(request, one, image_3SS, known_SS) for one in opened]
    label = "no label" if request.label is None else f"label {request.label}"
    about = f"{request.task}, {label}, {settings.describe_guidance()}"
    save_picture(request.out, image_3SS, known_SS, rows, first_seed=request.seed, title=f"{about}, image {seen}")
    logger.info(
        f"{request.out}: {request.count} completions of {request.image}, {about}; "
        + "; ".join(f"{name} {where}" for name, _, _, where in opened)
    )


def check(request: Request) -> None:
    """What can be said of a request before a network is opened."""
    task = choose(request.task, TASKS, "task", "command line")
    if (request.mask is None) == (request.box is None):
        raise ConfigError(
            "give either --mask or --box, to say what is kept and what is made anew", where="command line"
        )
    if task == "relabel" and request.label is None:
        raise ConfigError("relabel needs --label, the class to put there", where="--label")
    if request.box is not None:
        parse_box(request.box)
    for path in (request.image, request.mask):
        if path is not None:
            _read(path)


def _completed(request: Request, opened: tuple, image_3SS: torch.Tensor, known_SS: torch.Tensor) -> Row:
    name, var, vqvae, about = opened
    label = var.num_classes if request.label is None else request.label
    images_N3SS, _ = inpaint(
        var,
        vqvae,
        image_3SS,
        known_SS,
        [label] * request.count,
        SamplingSettings(**request.sampling),
        seeds=[request.seed + i for i in range(request.count)],
        progress=progress_callback(f"{name}, completions", request.count),
    )
    return Row(name, about, images_N3SS.cpu())


def read_request(request: Request, size: int) -> tuple[torch.Tensor, torch.Tensor, str]:
    """(image (3, S, S) in [0, 1], what is known of it (S, S), how it became so large); see `fitted`.

    Raises:
        ConfigError: files that are no images, a mask of another size, a box beyond the image.
    """
    image = _read(request.image)
    image_3SS = torch.from_numpy(np.array(fitted(image, size))).permute(2, 0, 1).float() / 255
    seen = "as it is" if image.size == (size, size) else f"{image.width}x{image.height} px cut to {size}x{size}"
    if request.box is not None:
        inside = "inside" if request.task == "outpaint" else "outside"
        known_SS = box_mask(parse_box(request.box, size), size, known=inside)
    else:
        known_SS = _read_mask(request, image, size)
    return image_3SS, known_SS, seen


def _read_mask(request: Request, image: Image.Image, size: int) -> torch.Tensor:
    """What the mask leaves known (S, S)."""
    mask = _read(request.mask)
    if mask.size not in (image.size, (size, size)):
        raise ConfigError(
            f"mask of {mask.width}x{mask.height} px for an image of {image.width}x{image.height} px; it must "
            f"have the image's size, or {size}x{size} px",
            where=request.mask,
        )
    hidden_SS = torch.from_numpy(np.array(fitted(mask, size).convert("L"))) >= _HIDDEN
    return ~hidden_SS


def fitted(image: Image.Image, size: int) -> Image.Image:
    """An image of size x size as it is; any other as a validation image: shrunk (`shrink`), then its centre."""
    if image.size == (size, size):
        return image
    image = shrink(image, size)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def parse_box(text: str, size: int | None = None) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1) of "x0,y0,x1,y1"; ConfigError where it is empty or reaches beyond the image, if its size is known."""
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
