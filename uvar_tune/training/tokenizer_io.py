"""Tokenizers on disk: a directory (``vqvae.safetensors``, ``settings.json``, ``manifest.json``) or an official .pth.

A checkpoint of a tokenizer's training is such a directory with ``training.pt``, the state for resuming.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from uvar_tune.errors import ConfigError, first_line
from uvar_tune.io.hashing import file_sha256
from uvar_tune.io.manifest import remove_leftovers, verify_directory, write_directory
from uvar_tune.io.safe_load import check_size, read_json, read_tensors, read_weights
from uvar_tune.model import VQVAE, load_official

_WEIGHTS, _SETTINGS, _TRAINING = "vqvae.safetensors", "settings.json", "training.pt"
_TENSORS_A_BLOCK = 16  # a block of a level exists in the encoder and in the decoder


def save_tokenizer(directory: str | Path, vqvae: VQVAE, *, training_state: dict[str, Any] | None = None) -> None:
    """Write weights and settings atomically; with the state of a CheckpointEvent, a checkpoint of the training."""
    from safetensors.torch import save_file

    state = {name: value.detach().cpu().contiguous() for name, value in vqvae.state_dict().items()}
    settings = json.dumps(vqvae.settings(), indent=1)
    writers = {
        _WEIGHTS: lambda path: save_file(state, path),
        _SETTINGS: lambda path: path.write_text(settings, encoding="utf-8"),
    }
    if training_state is None:
        return write_directory(Path(directory), writers, {})
    remove_leftovers(Path(directory).parent)  # checkpoints have one writer at a time
    writers[_TRAINING] = lambda path: torch.save(training_state, path)
    write_directory(Path(directory), writers, {"images": training_state["images"]})


def check_tokenizer(directory: Path, *, training_state: bool = False) -> dict[str, Any]:
    """The manifest of a valid tokenizer or, with ``training_state``, of a valid checkpoint of its training.

    Raises:
        ConfigError: names the fault of an invalid one.
    """
    return verify_directory(
        directory, needed=(_WEIGHTS, _SETTINGS, *((_TRAINING,) if training_state else ())), optional=(_TRAINING,)
    )


def load_training_state(directory: Path) -> dict[str, Any]:
    """What `train_tokenizer` takes as ``start``; the checkpoint has passed `check_tokenizer`."""
    return read_tensors(directory / _TRAINING)


def load_tokenizer(path: str | Path, *, scales: Sequence[int] | None = None) -> VQVAE:
    """The tokenizer of a directory that `save_tokenizer` wrote, or of an official .pth file; on the CPU.

    Args:
        path: directory or file.
        scales: required for an official file whose number of scales does not determine them.

    Raises:
        ConfigError: nothing there, corrupted, or settings that do not fit the weights.
    """
    path = Path(path)
    if path.is_file():
        return load_official(path, scales=scales)[0]
    if not path.is_dir():
        raise ConfigError("there is no tokenizer here: neither a directory nor a .pth file", where=str(path))
    check_tokenizer(path)
    settings, state = read_json(path / _SETTINGS), read_weights(path / _WEIGHTS)
    try:
        _check_count(settings, state, str(path))
        with torch.device("meta"):
            check_size(VQVAE.from_settings(settings), state, str(path))
        vqvae = VQVAE.from_settings(settings)
        vqvae.load_state_dict(state)
    except (TypeError, ValueError, LookupError, RuntimeError, ArithmeticError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"{_SETTINGS} does not describe these weights ({first_line(error)})", where=str(path)
        ) from None
    if scales is not None and tuple(scales) != vqvae.scales:
        raise ConfigError(
            f"scales {list(scales)} were given, but this tokenizer has {list(vqvae.scales)}", where=str(path)
        )
    return vqvae


def _check_count(settings: dict[str, Any], state: dict[str, torch.Tensor], where: str) -> None:
    """Raise a ConfigError if the settings describe more modules than there are tensors, before any is created."""
    levels, blocks, share = (
        len(settings["channel_multipliers"]),
        int(settings["blocks"]),
        int(settings["share_quant_resi"]),
    )
    scales = len(settings["scales"])
    if max(_TENSORS_A_BLOCK * levels * max(1, blocks), share, scales) > len(state):
        raise ConfigError(
            f"its settings describe {levels:,} levels of {str(blocks):.20} blocks, {scales:,} scales and "
            f"{str(share):.20} φ, its weights are {len(state):,} tensors",
            where=where,
        )


def tokenizer_hash(path: str | Path) -> str:
    """SHA-256 (64 hex digits) of the weights in ``path``, a directory or a file.

    Raises:
        ConfigError: nothing there.
    """
    path = Path(path)
    weights = path / _WEIGHTS if path.is_dir() else path
    if not weights.is_file():
        raise ConfigError("there is no tokenizer here: neither a directory nor a .pth file", where=str(path))
    stat = weights.stat()
    return _hashed(weights, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=16)
def _hashed(path: Path, changed_ns: int, size: int) -> str:
    return file_sha256(path)
