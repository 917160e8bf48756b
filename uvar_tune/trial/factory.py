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


def tokenizer_settings(config: Config) -> dict[str, Any]:
    """The arguments of `VQVAE` for a tokenizer to be trained."""
    t = config.tokenizer
    return {
        "vocab_size": t.vocab_size,
        "code_dim": t.code_dim,
        "channels": t.channels,
        "scales": t.scales,
        "channel_multipliers": t.channel_multipliers,
        "quant_resi": t.quant_resi,
        "share_quant_resi": t.share_quant_resi,
        "beta": t.beta,
    }


def tokenizer_plan(config: Config) -> dict[str, Any]:
    """The arguments of `train_tokenizer` that decide what a tokenizer becomes."""
    t = config.tokenizer
    lpips = {"lpips_weight": t.lpips_weight, "lpips_network": t.lpips_network} if t.lpips_weight else {}
    return {
        "images_total": t.images,
        "batch_size": t.batch_size,
        "learning_rate": t.learning_rate,
        "seed": seeds.derive(config.study.seed, "prepare", 0, "tokenizer"),
        **lpips,
    }


def new_vqvae(config: Config) -> VQVAE:
    """A fresh tokenizer, the same on every rank (the process's own random state stays as it is)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(tokenizer_plan(config)["seed"])
        return VQVAE(**tokenizer_settings(config))


def tokenizer_at(place: str | Path, config: Config) -> VQVAE:
    """The tokenizer at ``place`` for the images of `data.image_size`.

    An official file does not tell its scales: they are `tokenizer.scales` where these end at that size, else the official list.

    Raises:
        ConfigError: none is there, or one for images of another size.
    """
    size, lists = config.data.image_size, [None] if Path(place).is_dir() else [config.tokenizer.scales, None]
    found: list[VQVAE] = []
    for scales in lists:
        try:
            found.append(load_tokenizer(place, scales=scales))
        except ConfigError:  # no official list for so many scales, or a file that has as many weights as scales
            if scales is lists[-1] and not found:
                raise
        if found and found[-1].image_size == size:
            return found[-1]
    vqvae = found[0]
    factor = vqvae.image_size // vqvae.scales[-1]
    raise ConfigError(
        f"data.image_size {size} is {size / factor:g} codes wide with this tokenizer, and its scales end at "
        f"{vqvae.scales[-1]}" + ("" if Path(place).is_dir() else " (tokenizer.scales)"),
        where=str(place),
    )


def new_var(config: Config, vqvae, num_classes: int, seed: int, *, empty: bool = False) -> VAR:
    """A VAR for this tokenizer, initialised from ``seed`` (the process's own random state stays as it is), and from
    `training.init_from` where that is set; ``empty``: its weights are loaded afterwards, so no others are looked for.

    Raises:
        ConfigError: `training.init_from` holds no weights of a VAR of these sizes.
    """
    model = config.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        var = VAR(
            depth=model.depth,
            width=model.width or 64 * model.depth,
            heads=model.heads or model.depth,
            scales=vqvae.scales,
            vocab_size=vqvae.vocab_size,
            code_dim=vqvae.code_dim,
            num_classes=num_classes,
            shared_aln=model.shared_aln,
            attn_l2_norm=model.attn_l2_norm,
            label_dropout=model.label_dropout,
            drop_path=model.drop_path,
        )
    if config.training.init_from is not None and not empty:
        place = Path(config.training.init_from)
        source = load_checkpoint(find(place)).var_state if place.is_dir() else place
        start_from(var, source, where=f"training.init_from: {place}")
    return var


def find(path: Path) -> Path:
    """The checkpoint directory meant by ``path``: itself, or the newest sound one of a trial's directory.

    Raises:
        ConfigError: neither.
    """
    if (path / "manifest.json").exists():
        return path
    for parent in (path / "checkpoints", path):
        if parent.is_dir():
            found = latest_valid(parent, on_skip=lambda skipped, why: None)
            if found is not None:
                return found
    raise ConfigError(
        "is not a checkpoint: a directory with manifest.json and var.safetensors, or a trial's directory",
        where=str(path),
    )


def loss_arguments(config: Config, assets: dict[str, Any], vqvae, device) -> dict[str, Any]:
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


def training_loss(config: Config, assets: dict[str, Any], vqvae, bare: VAR, device) -> Callable[..., LossTerms]:
    """The ``loss`` of `train`: (model, vqvae, tokens_BL, labels_B, noise) → LossTerms under this configuration."""
    compute = batch_loss(config, assets, vqvae, bare, device)

    def loss(model, tokenizer, tokens_BL, labels_B, noise):
        return compute(model, tokenizer.teacher_input(split(tokens_BL, tokenizer.scales)), tokens_BL, labels_B, noise)

    return loss


def batch_loss(config: Config, assets: dict[str, Any], vqvae, bare: VAR, device) -> Callable[..., LossTerms]:
    """(model, teacher_input, tokens_BL, labels_B, noise) → LossTerms under this configuration."""
    objective = CompositeLoss(**loss_arguments(config, assets, vqvae, device), device=device)
    fused = config.training.fused == "on" or (config.training.fused == "auto" and vqvae.vocab_size >= FUSED_FROM)

    def loss(model, teacher_input, tokens_BL, labels_B, noise):
        if fused:
            hidden_BLD = model(labels_B, teacher_input, hidden=True, **noise)
            return objective.fused(hidden_BLD, bare.head.weight, bare.head.bias, tokens_BL)
        return objective(model(labels_B, teacher_input, **noise), tokens_BL)

    return loss


def calibration(config: Config, assets: dict[str, Any], vqvae) -> tuple[torch.Tensor, torch.Tensor]:
    """(σ²⋆ of each scale, semantic class of each code), from the training tokens; cached by the hash of their sources."""
    o, cache = config.loss, Path(assets["cache"]) / "references"
    options = {
        "uniform": {},
        "dataset": {"condition_on": o.condition_on},
        "normal": {"perplexity": o.perplexity, "distance": o.distance},
        "semantic": {"neighbours": o.neighbours, "distance": o.distance},
    }[o.reference]
    asked = {"name": o.reference, "dispersion": o.dispersion, **options}
    partition = {"name": o.partition, "count": o.class_count, "distance": o.distance}

    def reference() -> dict[str, Any]:
        tokens = TokenCache.open(assets["tokens"]["train"])
        found = build_reference(
            codebook=vqvae.codebook_VC.cpu(),
            tokens_NL=tokens.tokens_NL,
            labels_N=tokens.labels_N,
            scales=vqvae.scales,
            num_classes=assets["num_classes"],
            **asked,
        )
        return {"variance": found.variance_K.tolist(), "diagnostics": found.diagnostics}

    def classes() -> dict[str, Any]:
        decode = partial(_decode_alone, vqvae) if o.partition == "reconstruction" else None
        return {"classes": build_classes(codebook=vqvae.codebook_VC.cpu(), decode=decode, **partition).tolist()}

    variance = _cached(cache, {"tokens": Path(assets["tokens"]["train"]).name, **asked}, reference)["variance"]
    tokenizer = {"tokenizer": tokenizer_hash(assets["tokenizer"]), "scales": vqvae.scales}
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
