"""From a configuration to images, tokenizer, model and loss: the one place where settings become arguments."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from uvar_tune import seeds
from uvar_tune.config.schema import Config
from uvar_tune.data import ImageSet, load_images
from uvar_tune.errors import ConfigError
from uvar_tune.model import VAR, VQVAE, start_from
from uvar_tune.model.scales import split
from uvar_tune.objective import CompositeLoss, LossTerms
from uvar_tune.specs import Assets
from uvar_tune.training import latest_valid, load_checkpoint, load_tokenizer
from uvar_tune.trial.loss_constants import loss_constants

FUSED_FROM = 1024  # codes from which the fused loss pays under `training.fused: auto`


def load_split(config: Config, split: str) -> ImageSet:
    """The images of a split (section ``data``)."""
    return load_images(config.data, split)


def tokenizer_seed(config: Config) -> int:
    """The seed of the tokenizer's initialisation and training."""
    return seeds.derive(config.study.seed, "prepare", 0, "tokenizer")


def tokenizer_recipe(config: Config) -> dict[str, Any]:
    """Everything but the images that determines a trained tokenizer, as plain data (the key of its cache)."""
    unused = {"path", "crops"} | (set() if config.tokenizer.lpips_weight else {"lpips_weight", "lpips_network"})
    return {**config.tokenizer.model_dump(mode="json", exclude=unused), "seed": tokenizer_seed(config)}


def new_vqvae(config: Config) -> VQVAE:
    """A tokenizer before its training, the same on every rank; the process's random state is restored."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(tokenizer_seed(config))
        return VQVAE(config.tokenizer)


def open_tokenizer(path: str | Path, config: Config) -> VQVAE:
    """The tokenizer at ``path`` for images of `data.image_size`.

    An official file does not contain its scales: `tokenizer.scales` is tried first, then the official list.

    Raises:
        ConfigError: no tokenizer there, or one for images of another size.
    """
    size, lists = config.data.image_size, [None] if Path(path).is_dir() else [config.tokenizer.scales, None]
    candidates: list[VQVAE] = []
    for scales in lists:
        try:
            candidates.append(load_tokenizer(path, scales=scales))
        except ConfigError:  # no official list of this length, or a file with weights of its own for each scale
            if scales is lists[-1] and not candidates:
                raise
        if candidates and candidates[-1].image_size == size:
            return candidates[-1]
    vqvae = candidates[0]
    factor = vqvae.image_size // vqvae.scales[-1]
    raise ConfigError(
        f"data.image_size {size} is {size / factor:g} codes wide with this tokenizer, and its scales end at "
        f"{vqvae.scales[-1]}" + ("" if Path(path).is_dir() else " (tokenizer.scales)"),
        where=str(path),
    )


def new_var(config: Config, vqvae, num_classes: int, seed: int, *, empty: bool = False) -> VAR:
    """A VAR for this tokenizer; the process's random state is restored.

    Args:
        config: sections ``model`` and ``training``.
        vqvae: the tokenizer.
        num_classes: labels of the data.
        seed: of the initialisation.
        empty: the caller loads weights afterwards, so `training.init_from` is ignored.

    Raises:
        ConfigError: `training.init_from` holds no weights of a VAR of these sizes.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        var = VAR(
            config.model,
            vocab_size=vqvae.vocab_size,
            code_dim=vqvae.code_dim,
            scales=vqvae.scales,
            num_classes=num_classes,
        )
    if config.training.init_from is not None and not empty:
        path = Path(config.training.init_from)
        source = load_checkpoint(find_checkpoint(path)).var_state if path.is_dir() else path
        start_from(var, source, where=f"training.init_from: {path}")
    return var


def find_checkpoint(path: Path) -> Path:
    """The checkpoint at ``path``: the directory itself, or the newest valid checkpoint of a trial's directory.

    Raises:
        ConfigError: neither.
    """
    if (path / "manifest.json").exists():
        return path
    for parent in (path / "checkpoints", path):
        if parent.is_dir():
            checkpoint = latest_valid(parent, on_skip=lambda path, reason: None)
            if checkpoint is not None:
                return checkpoint
    raise ConfigError(
        "is not a checkpoint: a directory with manifest.json and var.safetensors, or a trial's directory",
        where=str(path),
    )


def training_loss(config: Config, assets: Assets, vqvae, bare: VAR, device) -> Callable[..., LossTerms]:
    """The ``loss`` that `train` takes: (model, vqvae, tokens_BL, labels_B, noise) → LossTerms.

    Args:
        config: with raw weights of the loss.
        assets: shared by the trials of a study.
        vqvae: the tokenizer.
        bare: the model without its data-parallel wrapper, whose head the fused loss differentiates.
        device: of the model.
    """
    compute = batch_loss(config, assets, vqvae, bare, device)

    def loss(model, tokenizer, tokens_BL, labels_B, noise):
        return compute(model, tokenizer.teacher_input(split(tokens_BL, tokenizer.scales)), tokens_BL, labels_B, noise)

    return loss


def batch_loss(config: Config, assets: Assets, vqvae, bare: VAR, device) -> Callable[..., LossTerms]:
    """(model, teacher_input, tokens_BL, labels_B, noise) → LossTerms; arguments as `training_loss`."""
    composite = CompositeLoss(
        config.loss, **loss_constants(config, assets, vqvae).arguments(vqvae, device), device=device
    )
    fused = config.training.fused == "on" or (config.training.fused == "auto" and vqvae.vocab_size >= FUSED_FROM)

    def loss(model, teacher_input, tokens_BL, labels_B, noise):
        if fused:
            hidden_BLD = model(labels_B, teacher_input, hidden=True, **noise)
            return composite.fused(hidden_BLD, bare.head.weight, bare.head.bias, tokens_BL)
        return composite(model(labels_B, teacher_input, **noise), tokens_BL)

    return loss
