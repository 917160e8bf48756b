"""The constants of a loss: reference variances and semantic classes, computed once and cached by content."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from uvar_tune.config.schema import Config
from uvar_tune.data import TokenCache
from uvar_tune.io.atomic import write_text_atomic
from uvar_tune.io.hashing import content_hash
from uvar_tune.io.safe_load import read_json
from uvar_tune.objective import build_classes, build_reference
from uvar_tune.specs import Assets
from uvar_tune.training import tokenizer_hash

_CODES_AT_ONCE = 128  # images decoded in one call


class LossConstants(NamedTuple):
    """What a loss needs besides its configuration and its predictions.

    Attributes:
        variance_K: σ²_⋆(k) of each scale.
        classes_V: semantic class of each code.
    """

    variance_K: torch.Tensor
    classes_V: torch.Tensor

    def arguments(self, vqvae, device: torch.device | str) -> dict[str, Any]:
        """The keyword arguments of `CompositeLoss` and `composite_loss`, on ``device``."""
        return {
            "scales": vqvae.scales,
            "codebook": vqvae.codebook_VC.detach(),
            "classes": self.classes_V.to(device),
            "reference_variance": self.variance_K.to(device),
        }


def loss_constants(config: Config, assets: Assets, vqvae) -> LossConstants:
    """The constants of this configuration, from the training tokens; cached under the hash of their sources.

    Args:
        config: section ``loss`` is used.
        assets: shared by the trials of a study.
        vqvae: the tokenizer.
    """
    loss, cache = config.loss, Path(assets.cache) / "references"
    codebook = vqvae.codebook_VC.cpu()
    options = {
        "uniform": (),
        "dataset": ("condition_on",),
        "normal": ("perplexity", "distance"),
        "semantic": ("neighbours", "distance"),
    }[loss.reference]
    reference_key = {name: getattr(loss, name) for name in ("reference", "dispersion", *options)}
    partition_key = {name: getattr(loss, name) for name in ("partition", "class_count", "distance")}

    def reference() -> dict[str, Any]:
        tokens = TokenCache.open(assets.tokens["train"])
        result = build_reference(
            loss.model_copy(update={"condition_on": loss.condition_on if loss.reference == "dataset" else "scale"}),
            codebook=codebook,
            tokens_NL=tokens.tokens_NL,
            labels_N=tokens.labels_N,
            scales=vqvae.scales,
            num_classes=assets.num_classes,
        )
        return {"variance": result.variance_K.tolist(), "diagnostics": result.diagnostics}

    def classes() -> dict[str, Any]:
        def decode(codes_n: torch.Tensor) -> torch.Tensor:
            return torch.cat([_decode_codes(vqvae, part) for part in codes_n.split(_CODES_AT_ONCE)])

        return {"classes": build_classes(loss, codebook=codebook, decode=decode).tolist()}

    tokens = {"tokens": Path(assets.tokens["train"]).name}
    tokenizer = {"tokenizer": tokenizer_hash(assets.tokenizer), "scales": vqvae.scales}
    variance = _cached(cache, {**tokens, **reference_key}, reference)["variance"]
    return LossConstants(
        torch.tensor(variance), torch.tensor(_cached(cache, {**tokenizer, **partition_key}, classes)["classes"])
    )


def _decode_codes(vqvae, codes_n: torch.Tensor) -> torch.Tensor:
    """For each code, the image with this code everywhere at the finest scale."""
    tokens = [torch.zeros(len(codes_n), p * p, dtype=torch.long) for p in vqvae.scales]
    tokens[-1] += codes_n[:, None]
    with torch.no_grad():
        return vqvae.decode([part.to(vqvae.codebook_VC.device) for part in tokens]).cpu()


def _cached(directory: Path, sources: dict[str, Any], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The JSON computed from ``sources``, written once and atomically (two processes compute the same)."""
    path = directory / f"{content_hash(sources)}.json"
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        write_text_atomic(path, json.dumps({"sources": sources, **compute()}))
    return read_json(path)
