"""Checkpoints: directories written atomically and verified by hash before anything is read.

``var.safetensors``, ``config.yaml``, ``tokenizer.json`` (path and hash), ``training.pt`` (state for resuming, may be
deleted), ``ema.safetensors`` (averaged weights, where the training has them) and ``manifest.json``, written last. A
directory is named by the number of images seen, so the newest has the largest number.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from uvar_tune.errors import ConfigError
from uvar_tune.io.manifest import remove_directory, remove_leftovers, verify_directory, write_directory
from uvar_tune.io.safe_load import dump_yaml, read_json, read_tensors, read_weights, read_yaml
from uvar_tune.training.tokenizer_io import tokenizer_hash

_REQUIRED = ("var.safetensors", "config.yaml", "tokenizer.json")
_EMA, _TRAINING = "ema.safetensors", "training.pt"
_Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory.

    Attributes:
        var_state: weights.
        config: as saved.
        tokenizer: {path, sha256}.
        images: seen.
        training_state: what `train` takes as ``start``; None unless requested.
        ema_state: averaged weights, or None.
        class_names: in the order of the labels; empty if unknown.
    """

    var_state: _Weights
    config: dict[str, Any]
    tokenizer: dict[str, Any]
    images: int
    training_state: dict[str, Any] | None
    ema_state: _Weights | None
    class_names: tuple[str, ...] = ()


def save_checkpoint(
    directory: str | Path,
    *,
    var_state: _Weights,
    config: dict[str, Any],
    tokenizer: dict[str, Any],
    training_state: dict[str, Any],
    ema_state: _Weights | None = None,
    class_names: Sequence[str] = (),
) -> None:
    """Write a checkpoint; an existing one of this name is replaced once the new one is complete.

    Args:
        directory: of the checkpoint.
        var_state: weights.
        config: plain data.
        tokenizer: {path}; its hash is added.
        training_state: of a CheckpointEvent.
        ema_state: averaged weights; by default those of ``training_state``.
        class_names: in the order of the labels, part of the manifest.
    """
    from safetensors.torch import save_file

    directory = Path(directory)
    training_state = dict(training_state)
    ema_state = training_state.pop("ema", None) if ema_state is None else ema_state
    training_state.pop("ema", None)
    if "sha256" not in tokenizer:
        tokenizer = {**tokenizer, "sha256": tokenizer_hash(tokenizer["path"])}
    plain = json.loads(json.dumps(config, allow_nan=False))
    writers: dict[str, Callable[[Path], Any]] = {
        "var.safetensors": lambda path: save_file(separate_tensors(var_state), path),
        "config.yaml": lambda path: path.write_text(dump_yaml(plain), encoding="utf-8"),
        "tokenizer.json": lambda path: path.write_text(json.dumps(tokenizer, indent=1), encoding="utf-8"),
        _TRAINING: lambda path: torch.save(training_state, path),
    }
    if ema_state is not None:
        writers[_EMA] = lambda path: save_file(separate_tensors(ema_state), path)
    directory.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(directory.parent)
    write_directory(directory, writers, {"images": training_state["images"], "class_names": list(class_names)})


def load_checkpoint(directory: str | Path, training_state: bool = False) -> Checkpoint:
    """Verify and read a checkpoint; tensors on the CPU.

    Raises:
        ConfigError: not a checkpoint, corrupted, or ``training_state`` requested and deleted.
    """
    directory = Path(directory)
    manifest = check_checkpoint(directory, training_state=training_state)
    ema_state = read_weights(directory / _EMA) if (directory / _EMA).exists() and _EMA in manifest["files"] else None
    state = None
    if training_state:
        state = read_tensors(directory / _TRAINING)
        state = state if ema_state is None else {**state, "ema": ema_state}
    tokenizer = read_json(directory / "tokenizer.json")
    if not all(isinstance(tokenizer.get(key), str) for key in ("path", "sha256")):
        raise ConfigError("tokenizer.json lacks the tokenizer's path and hash", where=str(directory))
    return Checkpoint(
        read_weights(directory / "var.safetensors"),
        read_yaml(directory / "config.yaml"),
        tokenizer,
        manifest["images"],
        state,
        ema_state,
        tuple(map(str, manifest.get("class_names", ()))),
    )


def check_checkpoint(directory: Path, *, training_state: bool) -> dict[str, Any]:
    """The manifest of a valid checkpoint; a ConfigError names the fault of an invalid one."""
    manifest = verify_directory(directory, needed=_REQUIRED, optional=(_TRAINING, _EMA))
    if not isinstance(manifest.get("images"), int):
        raise ConfigError("the manifest does not say how many images were seen", where=str(directory))
    if _EMA in manifest["files"] and not (directory / _EMA).exists():
        raise ConfigError(f"{_EMA} is missing", where=str(directory))
    if training_state and not (directory / _TRAINING).exists():
        raise ConfigError(
            f"{_TRAINING} was deleted: these weights can be used, but no training can continue from them",
            where=str(directory),
        )
    return manifest


def latest_valid(
    parent: str | Path,
    *,
    on_skip: Callable[[Path, str], Any],
    training_state: bool = False,
    check: Callable[..., Any] = check_checkpoint,
) -> Path | None:
    """The newest valid checkpoint in ``parent``, or None.

    Args:
        parent: directory of the checkpoints.
        on_skip: called with each newer, invalid checkpoint and the reason.
        training_state: require one from which training can continue.
        check: (directory, training_state=…) raises ConfigError for an invalid one; `check_tokenizer` for stage 1.
    """
    for directory in reversed(_checkpoints(Path(parent))):
        try:
            check(directory, training_state=training_state)
        except ConfigError as error:
            inner = error.where not in (None, str(directory))
            on_skip(directory, f"{Path(error.where).name}: {error.message}" if inner else error.message)
        else:
            return directory
    return None


def retain(parent: str | Path, *, max_bytes: int, check: Callable[..., Any] = check_checkpoint) -> list[Path]:
    """Delete the oldest checkpoints until the rest takes at most ``max_bytes``; never the newest valid one.

    Returns:
        The deleted directories.
    """
    paths = _checkpoints(Path(parent))
    sizes = {path: sum(file.lstat().st_size for file in path.iterdir()) for path in paths}
    excess, deleted = sum(sizes.values()) - max_bytes, []
    if excess <= 0:
        return []
    keep = latest_valid(parent, on_skip=lambda path, why: None, check=check)
    for path in paths:
        if excess > 0 and path != keep:
            remove_directory(path)
            excess -= sizes[path]
            deleted.append(path)
    return deleted


def _checkpoints(parent: Path) -> list[Path]:
    """Directories named by a number of images, ascending."""
    if not parent.is_dir():
        return []
    return sorted(
        (path for path in parent.iterdir() if path.name.isdecimal() and path.is_dir()), key=lambda path: int(path.name)
    )


def newest_images(parent: str | Path) -> int:
    """Training images of the newest checkpoint below ``parent``, valid or not; 0 without one."""
    return max((int(path.name) for path in _checkpoints(Path(parent))), default=0)


def separate_tensors(state: _Weights) -> _Weights:
    """Contiguous copies on the CPU that share no memory, as safetensors requires."""
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in state.items()}
