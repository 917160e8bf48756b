"""From a configuration to images, model and loss: the one place where settings become arguments."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from uvar_tune import seeds
from uvar_tune.config.schema import Config
from uvar_tune.data import TokenCache, load_images
from uvar_tune.errors import ConfigError
from uvar_tune.io.atomic import write_text_atomic
from uvar_tune.io.hashing import content_hash
from uvar_tune.io.safe_load import read_json
from uvar_tune.model import VAR, VQVAE, start_from
from uvar_tune.model.scales import split
from uvar_tune.objective import CompositeLoss, LossTerms, build_classes, build_reference
from uvar_tune.specs import Assets
from uvar_tune.training import latest_valid, load_checkpoint, load_tokenizer, tokenizer_hash


def load_split(config: Config, split: str):
    """The images of a split, as `data.*` names them."""
    data = config.data
    return load_images(
        data.name,
        split=split,
        path=data.path,
        image_size=data.image_size,
        classes=data.classes,
        on_corrupt=data.on_corrupt,
    )


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


def loss_arguments(config: Config, assets: Assets, vqvae, device) -> dict[str, Any]:
    """What `composite_loss` takes beside logits and targets, for this configuration."""
    o = config.loss
    variance_K, classes_V = calibration(config, assets, vqvae)
    return {
        "scales": vqvae.scales,
        "codebook": vqvae.codebook_VC.detach(),
        "classes": classes_V.to(device),
        "reference_variance": variance_K.to(device),
        "lambda_1": o.lambda_1,
        "lambda_2": o.lambda_2,
        "dispersion": o.dispersion,
        "discrepancy": o.discrepancy,
        "normalize": o.normalize,
        "kl_smoothing": o.kl_smoothing,
        "first_order": o.first_order,
        "epsilon": o.epsilon,
        "alpha": o.alpha,
    }


FUSED_FROM = 1024  # codes from which the logits of a batch are worth not being held


def training_loss(config: Config, assets: Assets, vqvae, bare: VAR, device) -> Callable[..., LossTerms]:
    """The ``loss`` of `train`: (model, vqvae, tokens_BL, labels_B, noise) → LossTerms under this configuration."""
    compute = batch_loss(config, assets, vqvae, bare, device)

    def loss(model, tokenizer, tokens_BL, labels_B, noise):
        return compute(model, tokenizer.teacher_input(split(tokens_BL, tokenizer.scales)), tokens_BL, labels_B, noise)

    return loss


def batch_loss(config: Config, assets: Assets, vqvae, bare: VAR, device) -> Callable[..., LossTerms]:
    """(model, teacher_input, tokens_BL, labels_B, noise) → LossTerms under this configuration."""
    objective = CompositeLoss(**loss_arguments(config, assets, vqvae, device), device=device)
    fused = config.training.fused == "on" or (config.training.fused == "auto" and vqvae.vocab_size >= FUSED_FROM)

    def loss(model, teacher_input, tokens_BL, labels_B, noise):
        if fused:
            hidden_BLD = model(labels_B, teacher_input, hidden=True, **noise)
            return objective.fused(hidden_BLD, bare.head.weight, bare.head.bias, tokens_BL)
        return objective(model(labels_B, teacher_input, **noise), tokens_BL)

    return loss


def calibration(config: Config, assets: Assets, vqvae) -> tuple[torch.Tensor, torch.Tensor]:
    """(σ²⋆ of each scale, semantic class of each code), from the training tokens; cached by the hash of their sources."""
    o, cache = config.loss, Path(assets.cache) / "references"
    options = {
        "uniform": {},
        "dataset": {"condition_on": o.condition_on},
        "normal": {"perplexity": o.perplexity, "distance": o.distance},
        "semantic": {"neighbours": o.neighbours, "distance": o.distance},
    }[o.reference]
    asked = {"name": o.reference, "dispersion": o.dispersion, **options}
    partition = {"name": o.partition, "count": o.class_count, "distance": o.distance}

    def reference() -> dict[str, Any]:
        tokens = TokenCache.open(assets.tokens["train"])
        found = build_reference(
            codebook=vqvae.codebook_VC.cpu(),
            tokens_NL=tokens.tokens_NL,
            labels_N=tokens.labels_N,
            scales=vqvae.scales,
            num_classes=assets.num_classes,
            **asked,
        )
        return {"variance": found.variance_K.tolist(), "diagnostics": found.diagnostics}

    def classes() -> dict[str, Any]:
        decode = partial(_decode_alone, vqvae) if o.partition == "reconstruction" else None
        return {"classes": build_classes(codebook=vqvae.codebook_VC.cpu(), decode=decode, **partition).tolist()}

    variance = _cached(cache, {"tokens": Path(assets.tokens["train"]).name, **asked}, reference)["variance"]
    tokenizer = {"tokenizer": tokenizer_hash(assets.tokenizer), "scales": vqvae.scales}
    found = _cached(cache, {**tokenizer, **partition}, classes)["classes"]
    return torch.tensor(variance), torch.tensor(found)


def _decode_alone(vqvae, codes_n: torch.Tensor) -> torch.Tensor:
    """The image that each code makes alone, everywhere at the finest scale."""
    tokens = [torch.zeros(len(codes_n), p * p, dtype=torch.long) for p in vqvae.scales]
    tokens[-1] += codes_n[:, None]
    with torch.no_grad():
        return vqvae.decode([part.to(vqvae.codebook_VC.device) for part in tokens]).cpu()


def _cached(directory: Path, sources: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The JSON made from ``sources``, written once (by atomic rename; two processes make the same)."""
    path = directory / f"{content_hash(sources)}.json"
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        write_text_atomic(path, json.dumps({"sources": sources, **make()}))
    return read_json(path)
