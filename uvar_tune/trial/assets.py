"""Artifacts that all trials of a study share: tokenizer, tokens, references, classes, features. Cached by content.

    images ─► tokenizer (trained, or tokenizer.path) ─► tokens of each split ─► σ²⋆ of every reference of the space
    images ─► digit classifier (if evaluation.extractor is `digits`)

They are stored in ``run.root/cache/<kind>/<hash>/``; the hash is that of their sources and settings.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch

from uvar_tune.config.schema import Config
from uvar_tune.data import build_token_cache
from uvar_tune.errors import ConfigError
from uvar_tune.evaluation import load_classifier, open_extractor, save_classifier, train_classifier
from uvar_tune.evaluation.reconstruction import reconstruction
from uvar_tune.io.atomic import write_text_atomic
from uvar_tune.io.hashing import content_hash
from uvar_tune.io.locks import FileLock
from uvar_tune.objective.dispersion import anchor_of
from uvar_tune.objective.moments import prepare_codes
from uvar_tune.objective.validate import check_reference
from uvar_tune.specs import Assets
from uvar_tune.tracking.metrics_log import MetricsLog
from uvar_tune.training import Progress, RunContext, TrainingWarning, save_tokenizer, tokenizer_hash, train_tokenizer
from uvar_tune.trial.factory import (
    load_split,
    new_var,
    new_vqvae,
    open_tokenizer,
    tokenizer_recipe,
    tokenizer_seed,
)
from uvar_tune.trial.loss_constants import loss_constants

_FACTS = "facts.json"


def prepare(config: Config, cache: Path, record_path: Path) -> Assets:
    """Make all shared artifacts, or find them in the cache.

    Args:
        config: of the study.
        cache: root of all caches.
        record_path: metrics log for the progress, which the driver follows.

    Raises:
        ConfigError: images, tokenizer or feature network cannot be used.
    """
    torch.set_num_threads(max(1, int(config.run.cpus_per_worker)))
    recorder, began = MetricsLog(record_path), time.process_time()
    own_classifier = config.evaluation.extractor == "digits" and config.evaluation.weights is None
    if not own_classifier:  # missing or unreadable weights end the study here, before anything is trained
        open_extractor(config.evaluation.extractor, weights=config.evaluation.weights)
    images = {split: load_split(config, split) for split in ("train", "validation")}
    for note in dict.fromkeys(note for split in images.values() for note in split.notes):
        _log(recorder, note)
    tokenizer, facts = _tokenizer(config, cache, images, recorder)
    vqvae = open_tokenizer(tokenizer, config).eval().requires_grad_(False)
    tokens = {split: str(_tokens(config, cache, tokenizer, split, images[split], vqvae, recorder)) for split in images}
    classifier = None
    if own_classifier:
        classifier, facts["classifier_accuracy"] = _classifier(images, cache, recorder)
    names = list(images["train"].class_names)
    assets = Assets(
        str(tokenizer),
        tokens,
        str(cache),
        len(names),
        names,
        {split: images[split].sha256 for split in images},
        classifier,
        facts,
    )
    if config.training.init_from is not None:
        new_var(config, vqvae, len(names), seed=0)  # an unusable file ends the study here
    facts["images"] = {split: len(images[split].images) for split in images}
    facts["references"] = _references(config, assets, vqvae)
    facts["cpu_sec"] = time.process_time() - began
    recorder.event("prepared", **facts)
    return assets


def _tokenizer(config: Config, cache: Path, images, recorder: MetricsLog) -> tuple[Path, dict[str, Any]]:
    """The directory of the tokenizer (or the file `tokenizer.path`), and facts about it."""
    if config.tokenizer.path is not None:
        return Path(config.tokenizer.path), {}
    key = content_hash({"recipe": tokenizer_recipe(config), "images": images["train"].sha256})
    directory = cache / "tokenizers" / key
    directory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(directory.with_name(f".{key}.lock")):  # studies that start together train one
        if (facts := _facts(directory)) is None:
            _log(recorder, f"tokenizer: training on {len(images['train'].images):,} images")
            vqvae, run = new_vqvae(config), RunContext(seed=tokenizer_seed(config))
            for event in train_tokenizer(vqvae, images["train"], config.tokenizer, run):
                if isinstance(event, Progress):
                    recorder.metrics(event.images, event.values)
                elif isinstance(event, TrainingWarning):
                    _log(recorder, f"tokenizer: {event.text}")
            facts = reconstruction(vqvae.eval(), images["validation"])
            save_tokenizer(directory, vqvae)
            write_text_atomic(directory / _FACTS, json.dumps(facts))
    _log(
        recorder,
        f"tokenizer: held-out reconstruction MSE {facts['reconstruction_mse']:.4f} (pixels in [-1, 1]), "
        f"{facts['codes_in_use']:.0f} of {config.tokenizer.vocab_size} codes in use",
    )
    return directory, facts


def _facts(directory: Path) -> dict[str, Any] | None:
    """Facts about a trained tokenizer; None if its training has not ended."""
    try:
        return json.loads((directory / _FACTS).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def _tokens(config: Config, cache: Path, tokenizer: Path, split: str, images, vqvae, recorder: MetricsLog) -> Path:
    crops = config.tokenizer.crops if split == "train" else 1
    key = content_hash(
        {"images": images.sha256, "tokenizer": tokenizer_hash(tokenizer), "scales": vqvae.scales, "crops": crops}
    )
    directory = cache / "tokens" / key
    made = build_token_cache(directory, images, vqvae, batch=64, crops=crops)
    rows, length = made.tokens_NL.shape
    kind = f" ({crops} random crops of each image)" if crops > 1 else ""
    _log(recorder, f"tokens of the {split} split: {rows:,} x {length}{kind}, {made.tokens_NL.nbytes / 2**20:,.1f} MiB")
    return directory


def _classifier(images, cache: Path, recorder: MetricsLog) -> tuple[str, float]:
    key = content_hash({"images": images["train"].sha256, "held_out": images["validation"].sha256, "version": 1})
    directory = cache / "features" / f"classifier-{key}"
    if not (directory / "meta.json").exists():
        save_classifier(train_classifier(images["train"], held_out=images["validation"]), directory)
    accuracy = load_classifier(directory).accuracy
    _log(recorder, f"feature network: digit classifier, held-out accuracy {accuracy:.2%}")
    return str(directory), accuracy


_OPTION = {"normal": "loss.perplexity", "semantic": "loss.neighbours"}  # the option of a reference


def _references(config: Config, assets: Assets, vqvae) -> dict[str, list[float]]:
    """Check all references and partitions of the space before the first trial.

    Each must be possible, at both ends of the range of its option, and wide enough for the discrepancies.

    Returns:
        reference → σ²⋆ of each scale, in units of the anchor.

    Raises:
        ConfigError: one of them is not.
    """
    codes = prepare_codes(vqvae.codebook_VC.detach().double().cpu())
    for name in ("loss.partition", "loss.condition_on"):
        for choice in _choices(config, name):
            loss_constants(config.with_values({name: choice}), assets, vqvae)
    for dispersion in _choices(config, "loss.dispersion"):
        values = {"loss.dispersion": dispersion}
        for reference in _choices(config, "loss.reference", **values):
            _check_reference(
                config, assets, vqvae, anchor_of(dispersion, codes), {**values, "loss.reference": reference}
            )
    anchor = anchor_of(config.loss.dispersion, codes)
    return {
        choice: (
            loss_constants(config.with_values({"loss.reference": choice}), assets, vqvae).variance_K / anchor
        ).tolist()
        for choice in _choices(config, "loss.reference")
    }


def _check_reference(config: Config, assets: Assets, vqvae, anchor: float, values: dict[str, Any]) -> None:
    option = _OPTION.get(values["loss.reference"])
    for end in _choices(config, option, **values) if option else [None]:
        variance_K = loss_constants(
            config.with_values({**values, **({option: end} if option else {})}), assets, vqvae
        ).variance_K
        for discrepancy in _choices(config, "loss.discrepancy", **values):
            try:
                check_reference(variance_K, vqvae.scales, anchor, discrepancy)
            except ConfigError as error:
                setting = ", ".join(
                    f"{name} {value}" for name, value in [*values.items(), *([(option, end)] if option else [])]
                )
                raise ConfigError(
                    f"{discrepancy!r} with {setting}: {error.message}", where=error.where, nearest=error.nearest
                ) from None


def _choices(config: Config, name: str, **values: Any) -> list[Any]:
    """The values of ``name`` in the space given ``values`` (both ends of a range), else the configuration's."""
    entry = config.space.get(name)
    if entry is None:
        return [config.get(name)]
    when = {other: condition for other, condition in entry.when.items() if other in values}
    return entry.edges() if entry.model_copy(update={"when": when}).active(values) else [config.get(name)]


def _log(recorder: MetricsLog, text: str) -> None:
    recorder.event("log", text=text)
