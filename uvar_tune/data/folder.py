"""Images in folders: path/train|val/CLASS/IMAGE, read when asked for, each file looked at once beforehand.

Recipe, as VAR's: shorter side to round(1.125·R) with Lanczos, then a crop of R x R: random and seeded by (image, number
of the crop) in training, the centre otherwise. Pixels become RGB: grey and CMYK converted, transparency laid on white,
16 bits scaled to 8.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from uvar_tune import seeds
from uvar_tune.data.image_set import ImageSet, chosen_classes
from uvar_tune.data.scan import UNREADABLE, opened, scan, shown
from uvar_tune.errors import ConfigError

DIRECTORIES = {"train": "train", "validation": "val"}
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"}
MAX_PIXELS = 89_478_485  # beyond it Pillow calls a file a decompression bomb
_MAX_RATIO = 64  # of the sides: a line of pixels becomes as large as a bomb when its shorter side is enlarged
_FORMATS = (
    "JPEG",
    "PNG",
    "WEBP",
    "BMP",
    "TIFF",
    "PPM",
)  # what `SUFFIXES` stand for; others may start an interpreter (PostScript)
_MARGIN = 1.125
_CROP_SEED = 20_240_301  # fixed: crops are part of the data
_RECIPE = "lanczos-1.125/crop/white/1"
_THREADS = min(8, os.cpu_count() or 1)


def load_folder(path: str, *, split: str, image_size: int, classes: Sequence[str] | None, on_corrupt: str) -> ImageSet:
    """One split of a folder of images. Classes are those of `train`, so that labels agree between the splits.

    Raises:
        ConfigError: no such folder, no images, a class without any, or files that cannot be read.
    """
    root = Path(path)
    place = root / DIRECTORIES[split]
    for needed in (root, root / DIRECTORIES["train"], place):
        if not needed.is_dir():
            raise ConfigError(
                f"{needed} is no directory; images lie in {path}/train|val/CLASS/IMAGE", where="data.path"
            )
    names = sorted(entry.name for entry in (root / DIRECTORIES["train"]).iterdir() if entry.is_dir())
    if not names:
        raise ConfigError(f"{root / DIRECTORIES['train']} holds no directory, and each class is one", where="data.path")
    chosen = chosen_classes(names, classes, str(root / DIRECTORIES["train"]))
    found = [(label, file) for label, name in enumerate(chosen) for file in _files(place / name)]
    missing = [name for label, name in enumerate(chosen) if label not in {known for known, _ in found}]
    if missing:
        raise ConfigError(
            f"no images of class {missing[0]!r} in {place} ({len(missing)} of {len(chosen)} classes missing)",
            where="data.path",
        )
    kept, skipped, sha256 = scan(
        place,
        found,
        check=read_image,
        on_corrupt=on_corrupt,
        threads=_THREADS,
        recipe=f"{_RECIPE}/{split}/{image_size}",
    )
    labels_N = torch.tensor([label for label, _ in kept], dtype=torch.long)
    empty = [name for label, name in enumerate(chosen) if not (labels_N == label).any()]
    if empty:
        raise ConfigError(f"no readable image of class {empty[0]!r} in {place}", where="data.path")
    images = FolderImages([file for _, file in kept], image_size, random_crops=split == "train")
    return ImageSet(images, labels_N, chosen, sha256, image_size, skipped)


def _files(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    return sorted(file for file in directory.iterdir() if file.suffix.lower() in SUFFIXES)


class FolderImages:
    """uint8 (N, 3, R, R), read on demand by a few threads; indexing gives centre crops."""

    def __init__(self, paths: Sequence[Path], size: int, *, random_crops: bool):
        self.paths, self.size, self._random = list(paths), size, random_crops

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows) -> torch.Tensor:
        index = np.arange(len(self))[rows]
        images = self._read([(int(i), None) for i in np.atleast_1d(index)])
        return images[0] if np.ndim(index) == 0 else images

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self[:].numpy(), dtype=dtype)

    def __dlpack__(self, **options):
        """All images, as `torch.as_tensor` asks for them."""
        return self[:].__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return torch.empty(0).__dlpack_device__()

    def crops(self, index_B: Iterable[int], crop_B: Iterable[int]) -> torch.Tensor:
        """Random crops, each drawn from (image, number of the crop); centre crops where the split has no others."""
        return self._read([(int(i), int(c) if self._random else None) for i, c in zip(index_B, crop_B, strict=True)])

    def _read(self, wanted: list[tuple[int, int | None]]) -> torch.Tensor:
        if not wanted:
            return torch.empty(0, 3, self.size, self.size, dtype=torch.uint8)
        with ThreadPoolExecutor(_THREADS) as pool:
            return torch.stack(list(pool.map(lambda pair: self._one(*pair), wanted)))

    def _one(self, index: int, crop: int | None) -> torch.Tensor:
        try:
            image = shrink(read_image(self.paths[index]), self.size)
        except UNREADABLE as error:
            raise ConfigError(f"cannot be read any more ({error})", where=shown(self.paths[index])) from error
        room = (image.width - self.size, image.height - self.size)
        left, top = room[0] // 2, room[1] // 2
        if crop is not None:
            draw_2 = torch.rand(2, generator=seeds.generator(_CROP_SEED, index, crop), dtype=torch.float64).tolist()
            left, top = (int(share * (free + 1)) for share, free in zip(draw_2, room, strict=True))
        part = image.crop((left, top, left + self.size, top + self.size))
        return torch.from_numpy(np.array(part)).permute(2, 0, 1).contiguous()


def read_image(path: Path) -> Image.Image:
    """An RGB image, decoded to its last byte. Raises one of `UNREADABLE`."""
    with opened(path) as handle, _picture(handle, path) as image:
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError(f"{image.width}x{image.height} pixels, more than {MAX_PIXELS:,}")
        if max(image.size) > _MAX_RATIO * min(image.size):
            raise Image.DecompressionBombError(f"{image.width}x{image.height} pixels, sides beyond 1:{_MAX_RATIO}")
        image.load()
        return _rgb(image)


def _picture(handle: BinaryIO, path: Path) -> Image.Image:
    try:
        return Image.open(handle, formats=_FORMATS)
    except UnidentifiedImageError:  # it names the handle
        raise UnidentifiedImageError(f"cannot identify image file {shown(path)!r}") from None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits, in whatever byte order
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def shrink(image: Image.Image, size: int) -> Image.Image:
    """Shorter side to round(1.125·size), the other in proportion."""
    short, long = sorted(image.size)
    target = round(_MARGIN * size)
    other = max(target, int(target * long / short))
    return image.resize((target, other) if image.width <= image.height else (other, target), Image.Resampling.LANCZOS)
