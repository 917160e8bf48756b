"""Images in folders: path/train|val/CLASS/IMAGE, verified once and decoded on access.

Recipe of VAR: shorter side to round(1.125·R) with Lanczos, then a crop of R x R: random and seeded by (image, number of
the crop) in training, else the centre. The orientation of EXIF is applied. Pixels become RGB: grey and CMYK are
converted, transparency is composited on white, 16 bits are scaled to 8.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError, features

from uvar_tune import seeds
from uvar_tune.config.schema import DataConfig
from uvar_tune.data.classes import describe_classes, select_classes
from uvar_tune.data.image_set import ImageSet
from uvar_tune.data.listing import class_folders, list_images
from uvar_tune.data.verification import UNREADABLE, open_regular, printable, verify_images
from uvar_tune.errors import ConfigError

DIRECTORIES = {"train": "train", "validation": "val"}
MAX_PIXELS = 89_478_485  # beyond it Pillow calls a file a decompression bomb
_MAX_RATIO = 64  # of the sides: a line of pixels becomes as large as a bomb when its shorter side is enlarged
# Formats of Pillow; others may start an interpreter (PostScript).
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM")
_FURTHER_FORMATS = {"gif": ("GIF", None), "avif": ("AVIF", "avif"), "jp2": ("JPEG2000", "jpg_2000")}
_MARGIN = 1.125
_CROP_SEED = 20_240_301  # constant: crops are part of the data
_READER = "2"  # raised whenever other files become unreadable
_RECIPE = "lanczos-1.125/crop/white/exif/2"
_THREADS = min(8, os.cpu_count() or 1)


def load_folder(config: DataConfig, split: str) -> ImageSet:
    """One split of a folder of images. Classes are those of `train`, so that labels agree between the splits.

    Raises:
        ConfigError: no such folder, no images, a class without any, files that cannot be read, or a format that this
            Pillow cannot decode.
    """
    root = Path(config.path)
    train, directory = root / DIRECTORIES["train"], root / DIRECTORIES[split]
    for needed in (root, train, directory):
        if not needed.is_dir():
            raise ConfigError(
                f"{needed} is not a directory; images are read from {config.path}/train|val/CLASS/IMAGE",
                where="data.path",
            )
    names = class_folders(train)
    if not names:
        raise ConfigError(f"{train} holds no class folders", where="data.path")
    class_names = select_classes(names, config.classes, str(train))
    images = read_class_folders(
        directory, class_names, config, random_crops=split == "train", recipe=f"{_RECIPE}/{split}/{config.image_size}"
    )
    unknown = sorted(set(class_folders(directory)) - set(names))
    if unknown:
        note = f"{directory}: {len(unknown)} folders are not read, {train} has no such class: {', '.join(unknown[:8])}"
        return images.with_notes(note)
    return images


def read_class_folders(
    directory: Path,
    class_names: Sequence[str],
    config: DataConfig,
    *,
    random_crops: bool,
    recipe: str,
    where: str = "data.path",
) -> ImageSet:
    """The images of DIRECTORY/CLASS/IMAGE.

    Args:
        directory: holds a folder per class.
        class_names: in the order of their labels.
        config: size, formats, subfolders, what to do with corrupt files.
        random_crops: whether `ImageSet.crops` are random; else they are the centre.
        recipe: how the images are processed, part of the hash.
        where: the setting or file that names the directory, for messages.

    Raises:
        ConfigError: a class without readable images, or files that cannot be read.
    """
    formats = _pillow_formats(config.formats)
    listing = list_images(directory, class_names, formats=config.formats, nested=config.nested)
    if missing := _classes_without(listing.files, class_names):
        hints = "".join(f"; {note}" for note in listing.notes)
        raise ConfigError(f"no images of {missing} in {directory}{hints}", where=where)
    verified = verify_images(
        directory,
        listing.files,
        decode=functools.partial(read_image, formats=formats),
        on_corrupt=config.on_corrupt,
        recipe=recipe,
        cache_key="/".join((_READER, *formats)),
    )
    if missing := _classes_without(verified.files, class_names):
        raise ConfigError(f"no readable image of {missing} in {directory}", where=where)
    return ImageSet(
        images=FolderImages([path for _, path in verified.files], config.image_size, formats, random_crops),
        labels_N=torch.tensor([label for label, _ in verified.files], dtype=torch.long),
        class_names=list(class_names),
        sha256=verified.sha256,
        image_size=config.image_size,
        skipped=verified.skipped,
        notes=(f"{directory}: {len(verified.files):,} images, {describe_classes(class_names)}", *listing.notes),
    )


def _classes_without(files: list[tuple[int, Path]], class_names: Sequence[str]) -> str | None:
    """The first class without a file and how many there are, for a message; None if every class has one."""
    labels = {label for label, _ in files}
    missing = [name for label, name in enumerate(class_names) if label not in labels]
    return f"class {missing[0]!r} ({len(missing)} of {len(class_names)} classes)" if missing else None


def _pillow_formats(extensions: Collection[str]) -> tuple[str, ...]:
    """Formats that Pillow may decode; ConfigError if it cannot."""
    further = []
    for extension, (name, feature) in _FURTHER_FORMATS.items():
        if extension in extensions:
            if feature is not None and not features.check(feature):
                raise ConfigError(f"{extension!r}: the installed Pillow cannot decode {name}", where="data.formats")
            further.append(name)
    return (*_FORMATS, *further)


class FolderImages:
    """uint8 (N, 3, R, R), decoded on access by a few threads; indexing returns centre crops."""

    def __init__(
        self, paths: Sequence[Path], size: int, formats: tuple[str, ...] = _FORMATS, random_crops: bool = False
    ):
        self.paths, self.size, self._formats, self._random = list(paths), size, formats, random_crops

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows) -> torch.Tensor:
        index = np.arange(len(self))[rows]
        images = self._read([(int(i), None) for i in np.atleast_1d(index)])
        return images[0] if np.ndim(index) == 0 else images

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self[:].numpy(), dtype=dtype)

    def __dlpack__(self, **options):
        """All images, for `torch.as_tensor`."""
        return self[:].__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        """The CPU."""
        return torch.empty(0).__dlpack_device__()

    def crops(self, index_B: Iterable[int], crop_B: Iterable[int]) -> torch.Tensor:
        """Random crops, each drawn from (image, number of the crop); centre crops if the set has no random ones."""
        return self._read([(int(i), int(c) if self._random else None) for i, c in zip(index_B, crop_B, strict=True)])

    def _read(self, requests: list[tuple[int, int | None]]) -> torch.Tensor:
        if not requests:
            return torch.empty(0, 3, self.size, self.size, dtype=torch.uint8)
        with ThreadPoolExecutor(_THREADS) as pool:
            return torch.stack(list(pool.map(lambda request: self._read_one(*request), requests)))

    def _read_one(self, index: int, crop: int | None) -> torch.Tensor:
        try:
            image = shrink(read_image(self.paths[index], formats=self._formats), self.size)
        except UNREADABLE as error:
            raise ConfigError(f"can no longer be read ({error})", where=printable(self.paths[index])) from error
        margin = (image.width - self.size, image.height - self.size)
        left, top = margin[0] // 2, margin[1] // 2
        if crop is not None:
            draw_2 = torch.rand(2, generator=seeds.generator(_CROP_SEED, index, crop), dtype=torch.float64).tolist()
            left, top = (int(share * (free + 1)) for share, free in zip(draw_2, margin, strict=True))
        part = image.crop((left, top, left + self.size, top + self.size))
        return torch.from_numpy(np.array(part)).permute(2, 0, 1).contiguous()


def read_image(path: Path, *, formats: tuple[str, ...] = _FORMATS) -> Image.Image:
    """An upright RGB image, decoded completely.

    Args:
        path: a regular file.
        formats: of Pillow; the content decides, not the extension.

    Raises:
        Exception: one of `UNREADABLE`.
    """
    with open_regular(path) as handle, _open_image(handle, path, formats) as image:
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError(f"{image.width}x{image.height} pixels, more than {MAX_PIXELS:,}")
        if max(image.size) > _MAX_RATIO * min(image.size):
            raise Image.DecompressionBombError(f"{image.width}x{image.height} pixels, sides beyond 1:{_MAX_RATIO}")
        image.load()
        return _rgb(_upright(image))


def _open_image(handle: BinaryIO, path: Path, formats: tuple[str, ...]) -> Image.Image:
    try:
        return Image.open(handle, formats=formats)
    except UnidentifiedImageError:  # its message names the handle
        raise UnidentifiedImageError(f"cannot identify image file {printable(path)!r}") from None


def _upright(image: Image.Image) -> Image.Image:
    """The image in the orientation of its EXIF data; malformed EXIF data have none."""
    with contextlib.suppress(*UNREADABLE):
        return ImageOps.exif_transpose(image)
    return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("F"):
        raise ValueError("pixels are floating-point numbers, whose range is unknown; convert it to 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits, in whatever byte order
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError("pixels exceed 16 bits; convert it to 8 or 16 bits")
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def shrink(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to round(1.125·size), the other in proportion."""
    short, long = sorted(image.size)
    target = round(_MARGIN * size)
    other = max(target, int(target * long / short))
    return image.resize((target, other) if image.width <= image.height else (other, target), Image.Resampling.LANCZOS)
