"""The tokens of a set of images, computed once and memory-mapped by every trial.

A directory with ``tokens.npy`` (rows x L), ``labels.npy`` and ``manifest.json`` (sizes, hashes, sources), renamed into
place when complete. During the build, finished shards are stored next to it in ``NAME.parts``, so that an interrupted
build continues; a lock on ``.NAME.lock`` makes a second builder wait and use the result of the first.
Row = image·crops + crop. Shapes: N rows, L = Σ p_k² positions.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from uvar_tune.data.image_set import ImageSet, to_unit
from uvar_tune.errors import ConfigError, first_line
from uvar_tune.io.atomic import atomic_path, write_text_atomic
from uvar_tune.io.hashing import state_sha256
from uvar_tune.io.locks import FileLock
from uvar_tune.io.manifest import remove_leftovers, verify_directory, write_directory
from uvar_tune.model.scales import positions

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]  # (rows done, rows)
_FILES = ("tokens.npy", "labels.npy")
_SHARD_ROWS = 4096


@dataclass(frozen=True)
class TokenCache:
    """Tokens and labels of a set of images.

    Attributes:
        tokens_NL: uint16 (int32 for more than 65,536 codes), memory-mapped, read only.
        labels_N: int64, of each row, memory-mapped; writes to it stay in the process.
        crops: crops per image.
        scales: (p_1, …, p_K) of the tokenizer.
        vocab_size: of the tokenizer.
        images: number of images; rows = images·crops.
        source: content hashes of images and tokenizer.
        class_names: in the order of the labels.
    """

    tokens_NL: np.ndarray
    labels_N: np.ndarray
    crops: int
    scales: tuple[int, ...]
    vocab_size: int
    images: int
    source: dict[str, Any]
    class_names: tuple[str, ...] = ()

    @classmethod
    def open(cls, directory: str | Path, *, hashes: bool = False) -> TokenCache:
        """Map a finished cache.

        Args:
            directory: of the cache.
            hashes: read and compare all contents; sizes are always compared.

        Raises:
            ConfigError: no cache there, or one that differs from its manifest.
        """
        directory = Path(directory)
        manifest = verify_directory(directory, needed=_FILES, hashes=hashes)
        try:
            crops, images, vocab_size, *scales = _sizes(
                [manifest["crops"], manifest["images"], manifest["vocab_size"], *manifest["scales"]]
            )
            cache = cls(
                _map_array(directory / "tokens.npy", "r"),
                _map_array(directory / "labels.npy", "c"),
                crops,
                tuple(scales),
                vocab_size,
                images,
                dict(manifest["source"]),
                tuple(map(str, manifest["class_names"])),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"is no token cache ({error})", where=str(directory)) from error
        cache._check_arrays(str(directory))
        return cache

    def _check_arrays(self, where: str) -> None:
        rows, length = self.images * self.crops, positions(self.scales)
        if self.tokens_NL.shape != (rows, length) or self.labels_N.shape != (rows,):
            raise ConfigError(
                f"tokens {self.tokens_NL.shape} and labels {self.labels_N.shape} are not {rows} rows of the "
                f"scales {str(list(self.scales)):.200}",
                where=where,
            )
        if self.tokens_NL.dtype not in (np.uint16, np.int32) or self.labels_N.dtype != np.int64:
            raise ConfigError(
                f"tokens {self.tokens_NL.dtype} and labels {self.labels_N.dtype} are not of the types of a cache",
                where=where,
            )


@dataclass(frozen=True)
class _Build:
    """What a cache is made from, and how."""

    images: ImageSet
    vqvae: Any
    batch: int
    crops: int
    progress: Progress | None

    @property
    def rows(self) -> int:
        return len(self.images) * self.crops

    @property
    def dtype(self) -> type:
        return np.uint16 if self.vqvae.vocab_size <= 1 << 16 else np.int32

    @property
    def source(self) -> dict[str, Any]:
        return {"images": self.images.sha256, "tokenizer": state_sha256(self.vqvae)}


def build_token_cache(
    directory: str | Path, images: ImageSet, vqvae, *, batch: int = 64, crops: int = 1, progress: Progress | None = None
) -> TokenCache:
    """Build the cache, or open it if it exists. A damaged one is built again.

    Args:
        directory: one for each set of images, tokenizer and number of crops.
        images: with as many pixels as the tokenizer takes.
        vqvae: the tokenizer, on any device.
        batch: rows encoded at once; the last batch is padded, because rounding depends on the shape of the batch.
        crops: per image: 1 is the centre crop, more are random ones. Images in memory have no crops: all rows of an
            image are equal.
        progress: called with (rows done, rows).

    Raises:
        ConfigError: images of another size, or a cache of other images, another tokenizer or another number of crops.
    """
    directory = Path(directory)
    if crops < 1 or batch < 1:
        raise ConfigError(f"crops {crops} and batch {batch} must be at least 1", where="tokens")
    if images.image_size != vqvae.image_size:
        raise ConfigError(
            f"images of {images.image_size} px, the tokenizer takes {vqvae.image_size}",
            where="data.image_size",
            nearest=str(vqvae.image_size),
        )
    build = _Build(images, vqvae, batch, crops, progress)
    source = build.source
    directory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(directory.with_name(f".{directory.name}.lock")):
        if (cache := _open_valid(directory)) is None:
            _write_cache(directory, build, source)
            cache = TokenCache.open(directory)
        remove_leftovers(directory.parent, directory.name)  # of killed builders
        shutil.rmtree(directory.with_name(f"{directory.name}.parts"), ignore_errors=True)
    if (cache.source, cache.crops, tuple(cache.scales)) != (source, crops, tuple(vqvae.scales)):
        raise ConfigError(
            f"holds the tokens of other images, tokenizer or crops ({cache.source}, {cache.crops} crops)",
            where=str(directory),
        )
    return cache


def _sizes(values: list) -> list[int]:
    """The values; ValueError unless all are sizes."""
    for value in values:
        if type(value) is not int or not 0 < value < 1 << 31:
            raise ValueError(f"its manifest has {str(value):.50} as a size")
    return values


def _map_array(path: Path, mode: str) -> np.ndarray:
    """A saved array, which takes no memory until it is read; ValueError for another file."""
    try:
        array = np.load(path, mmap_mode=mode, allow_pickle=False)
    except Exception as error:  # whatever a damaged header makes the reader raise
        raise ValueError(f"{path.name}: {first_line(error)}") from None
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path.name} is no array")
    return array


def _open_valid(directory: Path) -> TokenCache | None:
    """The cache if it exists and is intact."""
    try:
        return TokenCache.open(directory, hashes=True)
    except ConfigError:
        return None


def _write_cache(directory: Path, build: _Build, source: dict[str, Any]) -> None:
    rows, length = build.rows, positions(build.vqvae.scales)
    if build.crops > 1:
        size = rows * length * np.dtype(build.dtype).itemsize / 2**20
        logger.info(f"tokens of {build.crops} random crops of each of {len(build.images):,} images: {size:,.1f} MiB")
    parts = directory.with_name(f"{directory.name}.parts")
    plan = {
        "source": source,
        "crops": build.crops,
        "batch": build.batch,
        "rows": rows,
        "scales": tuple(build.vqvae.scales),
    }
    _open_parts(parts, json.dumps(plan, sort_keys=True))
    shard_rows = max(build.batch, _SHARD_ROWS // build.batch * build.batch)
    shards = [(start, min(start + shard_rows, rows)) for start in range(0, rows, shard_rows)]
    for start, end in shards:
        if _read_shard(parts, start, (end - start, length), build.dtype) is None:
            _encode_shard(parts, start, end, build)
        if build.progress:
            build.progress(end, rows)

    def write_tokens(path: Path) -> None:
        array = np.lib.format.open_memmap(path, mode="w+", dtype=build.dtype, shape=(rows, length))
        for start, end in shards:
            array[start:end] = _read_shard(parts, start, (end - start, length), build.dtype)
        array.flush()

    def write_labels(path: Path) -> None:
        np.save(path, build.images.labels_N.numpy().repeat(build.crops))

    write_directory(
        directory,
        {"tokens.npy": write_tokens, "labels.npy": write_labels},
        {
            "scales": list(build.vqvae.scales),
            "vocab_size": build.vqvae.vocab_size,
            "crops": build.crops,
            "images": len(build.images),
            "source": source,
            "class_names": list(build.images.class_names),
        },
    )


def _open_parts(parts: Path, plan: str) -> None:
    """Create the directory of shards, or empty it if they belong to another plan."""
    path = parts / "plan.json"
    if parts.exists() and (not path.exists() or path.read_text(encoding="utf-8") != plan):
        shutil.rmtree(parts)
    parts.mkdir(exist_ok=True)
    write_text_atomic(path, plan)


def _read_shard(parts: Path, start: int, shape: tuple[int, int], dtype) -> np.ndarray | None:
    """A finished shard, or None."""
    try:
        shard = _map_array(parts / f"{start:012d}.npy", "r")
    except ValueError:
        return None
    return shard if (shard.shape, shard.dtype) == (shape, dtype) else None


@torch.no_grad()
def _encode_shard(parts: Path, start: int, end: int, build: _Build) -> None:
    device, tokens = build.vqvae.codebook_VC.device, []
    for first in range(start, end, build.batch):
        row_B = torch.arange(first, min(first + build.batch, end))
        padded_B = torch.cat([row_B, row_B[-1:].expand(build.batch - len(row_B))])
        pixels = to_unit(_pixels(build, padded_B).to(device))
        tokens.append(torch.cat(build.vqvae.encode(pixels), 1)[: len(row_B)].cpu().numpy().astype(build.dtype))
        if build.progress:
            build.progress(first + len(row_B), build.rows)
    with atomic_path(parts / f"{start:012d}.npy") as staged, staged.open("wb") as handle:
        np.save(handle, np.concatenate(tokens))


def _pixels(build: _Build, row_B: torch.Tensor) -> torch.Tensor:
    """uint8 (B, 3, H, W): the centre crop if there is one crop per image, else the random crop of each row."""
    if build.crops == 1:
        return build.images.images[row_B]
    return build.images.crops(row_B // build.crops, row_B % build.crops)
