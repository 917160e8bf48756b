"""Metric families as plug-ins: each is a function from a `Context` to named values of the metric registry.

A new family is one function and one line in `FAMILIES`; its names stand in ``uvar_tune.metrics`` with unit
and direction. What several families need (features of the generated images) the context computes once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from uvar_tune.config.schema import LossConfig
from uvar_tune.errors import ConfigError, choose
from uvar_tune.evaluation.diversity import code_statistics, density_coverage, pairwise_ssim
from uvar_tune.evaluation.features import conditional_accuracy
from uvar_tune.evaluation.fidelity import (
    FIDELITY_METRICS,
    Extractor,
    Features,
    check_sets,
    reference_features,
    scores_from_features,
)
from uvar_tune.evaluation.likelihood import likelihood
from uvar_tune.evaluation.scorecard import scorecard
from uvar_tune.metrics import metric


@dataclass(frozen=True)
class Context:
    """What there is to evaluate; a family names the fields that it needs, the others may stay None.

    Attributes:
        generated_N3HW, labels_N, generated_tokens_NL: uint8 samples, the labels they were sampled under, their tokens.
        reference: ImageSet or uint8 images; extractor: an open feature network; cache_root: of reference features.
        metrics, seed, kid_subset_size: of `fidelity_scores`.
        var, vqvae: the networks; tokens_NL, token_labels_N: held-out tokens and their labels.
        classes_V, reference_variance_K, loss: of `scorecard`.
    """

    generated_N3HW: Tensor | None = None
    labels_N: Tensor | None = None
    generated_tokens_NL: Any = None
    reference: Any = None
    extractor: Extractor | None = None
    cache_root: str | Path | None = None
    metrics: Sequence[str] = FIDELITY_METRICS
    seed: int = 2020
    kid_subset_size: int | None = None
    var: Any = None
    vqvae: Any = None
    tokens_NL: Any = None
    token_labels_N: Any = None
    classes_V: Tensor | None = None
    reference_variance_K: Sequence[float] | None = None
    loss: LossConfig = LossConfig()
    chunk: int = 64
    device: str = "cpu"

    @cached_property
    def generated_features(self) -> Features:
        check_sets(self.generated_N3HW, self.reference)
        return self.extractor(self.generated_N3HW)

    @cached_property
    def reference_features(self) -> Features:
        return reference_features(self.reference, self.extractor, cache_root=self.cache_root)


@dataclass(frozen=True)
class Family:
    compute: Callable[[Context], dict[str, float]]
    needs: tuple[str, ...]


def _fidelity(c: Context) -> dict[str, float]:
    return scores_from_features(
        c.generated_features, c.reference_features, metrics=c.metrics, seed=c.seed, kid_subset_size=c.kid_subset_size
    )


def _density(c: Context) -> dict[str, float]:
    return density_coverage(c.generated_features.features_NF, c.reference_features.features_NF)


def _ssim(c: Context) -> dict[str, float]:
    return pairwise_ssim(c.generated_N3HW, labels_N=c.labels_N)


def _codes(c: Context) -> dict[str, float]:
    return code_statistics(c.generated_tokens_NL, scales=c.var.scales, vocab_size=c.var.vocab_size)


def _classes(c: Context) -> dict[str, float]:
    return {"conditional_accuracy": conditional_accuracy(c.generated_features.logits_NY, c.labels_N)}


def _likelihood(c: Context) -> dict[str, float]:
    return likelihood(c.var, c.vqvae, c.tokens_NL, c.token_labels_N, chunk=c.chunk, device=c.device)


def _scorecard(c: Context) -> dict[str, float]:
    return scorecard(
        c.var,
        c.vqvae,
        c.tokens_NL,
        c.token_labels_N,
        classes_V=c.classes_V,
        reference_variance_K=c.reference_variance_K,
        loss=c.loss,
        chunk=c.chunk,
        device=c.device,
    )


_FEATURES = ("generated_N3HW", "reference", "extractor")
_HELD_OUT = ("var", "vqvae", "tokens_NL", "token_labels_N")
FAMILIES = {
    "fidelity": Family(_fidelity, _FEATURES),
    "density": Family(_density, _FEATURES),
    "ssim": Family(_ssim, ("generated_N3HW",)),
    "codes": Family(_codes, ("generated_tokens_NL", "var")),
    "classes": Family(_classes, (*_FEATURES, "labels_N")),
    "likelihood": Family(_likelihood, _HELD_OUT),
    "scorecard": Family(_scorecard, (*_HELD_OUT, "classes_V", "reference_variance_K")),
}


def evaluate(context: Context, families: Iterable[str]) -> dict[str, float]:
    """The values of all ``families``, every name known to the metric registry.

    Raises ConfigError for an unknown family and for one whose input the context lacks, before anything is computed.
    """
    families = list(families)
    for name in families:
        family = FAMILIES[choose(name, FAMILIES, "metric family")]
        missing = [field for field in family.needs if getattr(context, field) is None]
        if missing:
            raise ConfigError(f"needs {', '.join(missing)}", where=f"metric family {name!r}")
    found: dict[str, float] = {}
    for name in families:
        values = FAMILIES[name].compute(context)
        for key in values:
            metric(key)
        found |= values
    return found
