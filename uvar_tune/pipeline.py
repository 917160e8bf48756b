"""A checkpoint back as models: what `generate`, `edit`, `evaluate` and others start from."""

from __future__ import annotations

from pathlib import Path

import torch

from uvar_tune.config.loading import validate
from uvar_tune.config.schema import Config
from uvar_tune.errors import ConfigError
from uvar_tune.io.safe_load import check_size
from uvar_tune.model import load_official, start_from
from uvar_tune.training import Checkpoint, load_checkpoint, tokenizer_hash
from uvar_tune.trial.factory import find_checkpoint, new_var, open_tokenizer

_TENSORS_A_BLOCK = 10  # of a VAR, at least
__all__ = ["find_checkpoint", "open_networks", "restore", "stored_config"]


def open_networks(
    checkpoint: str | None,
    *,
    vae: str | None = None,
    var: str | None = None,
    tokenizer: str | None = None,
    device: str = "cpu",
):
    """(VAR, VQVAE, description) of a checkpoint of ours, or of official files.

    Raises:
        ConfigError: both or neither of the two given, one official file without the other, or what `restore` and
            `load_official` refuse.
    """
    if vae is None and var is None:
        if checkpoint is None:
            raise ConfigError(
                "a checkpoint is missing: its directory, or official files by --vae and --var", where="command line"
            )
        return restore(checkpoint, tokenizer=tokenizer, device=device)
    if vae is None or var is None:
        raise ConfigError(
            "official files come in pairs: the tokenizer's by --vae and the transformer's by --var",
            where="--var" if vae is None else "--vae",
        )
    for given, name in ((checkpoint, "a checkpoint directory"), (tokenizer, "--tokenizer")):
        if given is not None:
            raise ConfigError(f"{name} ({given}) beside official files: one or the other", where="--vae and --var")
    check_device(device)
    vqvae, transformer = load_official(vae, var)
    vqvae = vqvae.to(device).eval().requires_grad_(False)
    return transformer.to(device).eval().requires_grad_(False), vqvae, f"{var}, tokenizer {vae} (official files)"


def restore(path: str | Path, *, tokenizer: str | None = None, device: str = "cpu"):
    """(VAR, VQVAE, description) of a checkpoint directory, or of a trial's directory (its newest valid checkpoint).

    Raises:
        ConfigError: not a checkpoint, a corrupt one, or its tokenizer is not where it was or not one of these sizes.
    """
    check_device(device)
    directory = find_checkpoint(Path(path))
    checkpoint = load_checkpoint(directory)
    config = stored_config(checkpoint, directory)
    place = tokenizer or checkpoint.tokenizer["path"]
    if not Path(place).exists():
        raise ConfigError(
            f"the tokenizer of this checkpoint is not at {place}; give its place with --tokenizer", where=str(directory)
        )
    if tokenizer_hash(place) != checkpoint.tokenizer["sha256"]:
        raise ConfigError(f"{place} is not the tokenizer that this checkpoint was trained with", where=str(directory))
    vqvae = open_tokenizer(place, config).to(device).eval().requires_grad_(False)
    weights = checkpoint.ema_state or checkpoint.var_state
    classes = weights.get("class_emb.weight")
    if classes is None or classes.ndim != 2:
        raise ConfigError("var.safetensors holds no table of classes: no VAR of ours", where=str(directory))
    if _TENSORS_A_BLOCK * config.model.depth > len(weights):  # before as many modules are made
        raise ConfigError(
            f"its settings describe {str(config.model.depth):.20} blocks, its weights are {len(weights):,} tensors",
            where=str(directory),
        )
    with torch.device("meta"):
        check_size(new_var(config, vqvae, len(classes) - 1, seed=0, empty=True), weights, str(directory))
    var = new_var(config, vqvae, len(classes) - 1, seed=0, empty=True)
    start_from(var, weights, where=f"{directory} with the tokenizer {place}")
    if len(checkpoint.class_names) == var.num_classes:
        var.class_names = checkpoint.class_names
    return var.to(device).eval(), vqvae, f"{directory} ({checkpoint.images:,} images)"


def stored_config(checkpoint: Checkpoint, directory: Path) -> Config:
    """The configuration that a checkpoint was trained under; ConfigError where it is none."""
    return validate(checkpoint.config, str(directory / "config.yaml"))


def resolve_device(device: str) -> str:
    """The device itself; for ``auto`` the GPU, or the CPU if PyTorch sees no GPU.

    Raises:
        ConfigError: PyTorch does not know the device or does not see it.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    check_device(device)
    return device


def check_device(device: str) -> None:
    """ConfigError unless PyTorch can compute there."""
    try:
        kind = torch.device(device).type
    except RuntimeError:
        kind = ""
    if kind not in ("cpu", "cuda"):
        raise ConfigError(f"{device!r} is no device (cpu, cuda, cuda:1, …)", where="--device", nearest="cpu")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"{device!r} asks for a GPU, and PyTorch sees none here", where="--device", nearest="cpu")
