"""The tokens of a set of images, computed once and memory-mapped by every trial.

A directory: ``tokens.npy`` (rows x L), ``labels.npy``, ``manifest.json`` (sizes, hashes, what it was made from), which is
renamed into place when whole. While it is built, finished shards stand beside it in ``NAME.parts``, so a build that was
killed goes on where it was; a lock on ``.NAME.lock`` makes a second builder wait and find the first one's work.
Row = image·crops + crop. Shapes: N rows, L = Σ p_k² positions.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from uvar_tune.data.image_set import ImageSet, to_unit
from uvar_tune.errors import ConfigError, first_line
from uvar_tune.io.atomic import atomic_path
from uvar_tune.io.hashing import state_sha256
from uvar_tune.io.locks import FileLock
from uvar_tune.io.manifest import remove_leftovers, verify_directory, write_directory
from uvar_tune.model.scales import positions

Progress = Callable[[int, int], None]
_FILES = ("tokens.npy", "labels.npy")
_SHARD_ROWS = 4096


@dataclass(frozen=True)
class TokenCache:
    """Attributes:
    tokens_NL: uint16 (int32 for more than 65,536 codes), memory-mapped, read only.
    labels_N: int64, of each row, memory-mapped; what is written to it stays with the process.
    images: how many; rows = images·crops.
    source: content hashes of images and tokenizer.
    """

    tokens_NL: np.ndarray
    labels_N: np.ndarray
    crops: int
    scales: tuple[int, ...]
    vocab_size: int
    images: int
    source: dict[str, Any]

    @classmethod
    def open(cls, directory: str | Path, *, hashes: bool = False) -> TokenCache:
        """Map a finished cache.

        Args:
            hashes: read it all and compare contents too (sizes are always compared).

        Raises:
            ConfigError: none there, or not what its manifest says.
        """
        directory = Path(directory)
        facts = verify_directory(directory, needed=_FILES, hashes=hashes)
        try:
            crops, images, vocab_size, *scales = _whole(
                [facts["crops"], facts["images"], facts["vocab_size"], *facts["scales"]]
            )
            found = cls(
                _mapped(directory / "tokens.npy", "r"),
                _mapped(directory / "labels.npy", "c"),
                crops,
                tuple(scales),
                vocab_size,
                images,
                dict(facts["source"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"is no token cache ({error})", where=str(directory)) from error
        rows, length = images * crops, positions(scales)
        if found.tokens_NL.shape != (rows, length) or found.labels_N.shape != (rows,):
            raise ConfigError(
                f"tokens {found.tokens_NL.shape} and labels {found.labels_N.shape} are not {rows} rows of the "
                f"scales {str(scales):.200}",
                where=str(directory),
            )
        if found.tokens_NL.dtype not in (np.uint16, np.int32) or found.labels_N.dtype != np.int64:
            raise ConfigError(
                f"tokens {found.tokens_NL.dtype} and labels {found.labels_N.dtype} are not of the types of a cache",
                where=str(directory),
            )
        return found


def build_token_cache(
    directory: str | Path, images: ImageSet, vqvae, *, batch: int = 64, crops: int = 1, progress: Progress | None = None
) -> TokenCache:
    """Make the cache, or find it. One that is damaged is made anew.

    Args:
        directory: one for each set of images, tokenizer and number of crops.
        vqvae: on whatever device.
        batch: rows encoded at once; the last batch is padded, because kernels round by batch shape.
        crops: of each image. Images in memory have no others, so all their crops are alike.
        progress: called with (rows done, rows).

    Raises:
        ConfigError: images of another size, or a cache there of other images, tokenizer or crops.
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
    source = {"images": images.sha256, "tokenizer": state_sha256(vqvae)}
    directory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(directory.with_name(f".{directory.name}.lock")):
        if (found := _existing(directory)) is None:
            _build(directory, images, vqvae, batch, crops, source, progress)
            found = TokenCache.open(directory)
        remove_leftovers(directory.parent, directory.name)  # of killed builders
        shutil.rmtree(directory.with_name(f"{directory.name}.parts"), ignore_errors=True)
    if (found.source, found.crops, tuple(found.scales)) != (source, crops, tuple(vqvae.scales)):
        raise ConfigError(
            f"holds the tokens of other images, tokenizer or crops ({found.source}, {found.crops} crops)",
            where=str(directory),
        )
    return found


def _whole(values: list) -> list[int]:
    """The values, where all of them are sizes."""
    for value in values:
        if type(value) is not int or not 0 < value < 1 << 31:
            raise ValueError(f"its manifest says {str(value):.50} where a size stands")
    return values


def _mapped(path: Path, mode: str) -> np.ndarray:
    """A saved array, which takes no memory until it is read. ValueError for what is none."""
    try:
        found = np.load(path, mmap_mode=mode, allow_pickle=False)
    except Exception as error:  # whatever a damaged header makes the reader raise
        raise ValueError(f"{path.name}: {first_line(error)}") from None
    if not isinstance(found, np.ndarray):
        raise ValueError(f"{path.name} is no array")
    return found


def _existing(directory: Path) -> TokenCache | None:
    """The cache if it is there and sound."""
    try:
        return TokenCache.open(directory, hashes=True)
    except ConfigError:
        return None


def _build(
    directory: Path, images: ImageSet, vqvae, batch: int, crops: int, source: dict[str, Any], progress: Progress | None
) -> None:
    rows, scales = len(images) * crops, tuple(vqvae.scales)
    dtype = np.uint16 if vqvae.vocab_size <= 1 << 16 else np.int32
    parts = directory.with_name(f"{directory.name}.parts")
    plan = {"source": source, "crops": crops, "batch": batch, "rows": rows, "scales": scales}
    _open_parts(parts, json.dumps(plan, sort_keys=True))
    shard = max(batch, _SHARD_ROWS // batch * batch)
    for start in range(0, rows, shard):
        end = min(start + shard, rows)
        if _shard(parts, start, (end - start, positions(scales)), dtype) is None:
            _encode_shard(parts, start, end, images, vqvae, batch, crops, dtype, progress, rows)
        if progress:
            progress(end, rows)

    def tokens(path: Path) -> None:
        whole = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(rows, positions(scales)))
        for start in range(0, rows, shard):
            count = min(shard, rows - start)
            whole[start : start + count] = _shard(parts, start, (count, positions(scales)), dtype)
        whole.flush()

    labels_N = images.labels_N.numpy().repeat(crops)
    write_directory(
        directory,
        {"tokens.npy": tokens, "labels.npy": lambda path: np.save(path, labels_N)},
        {
            "scales": list(scales),
            "vocab_size": vqvae.vocab_size,
            "crops": crops,
            "images": len(images),
            "source": source,
        },
    )


def _open_parts(parts: Path, plan: str) -> None:
    """The directory of shards, emptied where they were made by another plan."""
    if parts.exists() and (not (parts / "plan.json").exists() or (parts / "plan.json").read_text() != plan):
        shutil.rmtree(parts)
    parts.mkdir(exist_ok=True)
    (parts / "plan.json").write_text(plan)


def _shard(parts: Path, start: int, shape: tuple[int, int], dtype) -> np.ndarray | None:
    """A finished shard, or None."""
    try:
        found = _mapped(parts / f"{start:012d}.npy", "r")
    except ValueError:
        return None
    return found if (found.shape, found.dtype) == (shape, dtype) else None


@torch.no_grad()
def _encode_shard(
    parts: Path,
    start: int,
    end: int,
    images: ImageSet,
    vqvae,
    batch: int,
    crops: int,
    dtype,
    progress: Progress | None,
    total: int,
) -> None:
    device, tokens = vqvae.codebook_VC.device, []
    for first in range(start, end, batch):
        row_B = torch.arange(first, min(first + batch, end))
        padded_B = torch.cat([row_B, row_B[-1:].expand(batch - len(row_B))])
        pixels = to_unit(images.crops(padded_B // crops, padded_B % crops).to(device))
        tokens.append(torch.cat(vqvae.encode(pixels), 1)[: len(row_B)].cpu().numpy().astype(dtype))
        if progress:
            progress(first + len(row_B), total)
    with atomic_path(parts / f"{start:012d}.npy") as staged, staged.open("wb") as handle:
        np.save(handle, np.concatenate(tokens))
