"""Metric families: each is a function from `MetricInputs` to named values of the metric registry.

A new family is one function and one line in `FAMILIES`. Its metrics are registered in `uvar_tune.metrics` with unit and
direction.

Shapes: N generated images, M held-out images, L positions, K scales, V codes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from uvar_tune.config.schema import LossConfig
from uvar_tune.errors import ConfigError, choose
from uvar_tune.evaluation.copies import copy_statistics
from uvar_tune.evaluation.diversity import code_statistics, density_coverage, pairwise_ssim
from uvar_tune.evaluation.features import conditional_accuracy
from uvar_tune.evaluation.fidelity import FIDELITY_METRICS, Features, scores_from_features
from uvar_tune.evaluation.likelihood import likelihood
from uvar_tune.evaluation.scorecard import scorecard
from uvar_tune.metrics import metric


@dataclass(frozen=True)
class MetricInputs:
    """What the families are computed from. Each names the fields that it needs; the others may stay None.

    Attributes:
        images_N3HW: generated images, uint8.
        labels_N: the labels under which they were sampled.
        tokens_NL: their tokens.
        features: features of the generated images.
        reference: features of the reference images.
        metrics: the fidelity metrics to compute, see `scores_from_features`.
        seed: of KID's subsets and of IS's splits.
        var: the transformer.
        vqvae: the tokenizer.
        training_tokens_ML: tokens of the training images.
        training_labels_M: their labels.
        held_out_tokens_ML: tokens of held-out images.
        held_out_labels_M: their labels.
        loss: dispersion, discrepancy and their options for the scorecard.
        classes_V: semantic class of each code.
        reference_variance_K: σ²⋆ of each scale, before normalisation.
        chunk: held-out images that the networks process at once.
        device: of the networks.
    """

    images_N3HW: Tensor | None = None
    labels_N: Tensor | None = None
    tokens_NL: Any = None
    features: Features | None = None
    reference: Features | None = None
    metrics: Sequence[str] = FIDELITY_METRICS
    seed: int = 2020
    var: Any = None
    vqvae: Any = None
    training_tokens_ML: Any = None
    training_labels_M: Any = None
    held_out_tokens_ML: Any = None
    held_out_labels_M: Any = None
    loss: LossConfig | None = None
    classes_V: Tensor | None = None
    reference_variance_K: Sequence[float] | None = None
    chunk: int = 64
    device: Any = "cpu"


@dataclass(frozen=True)
class Family:
    """Metrics that are computed together, and the fields of `MetricInputs` that they need."""

    compute: Callable[[MetricInputs], dict[str, float]]
    needs: tuple[str, ...]


def _fidelity(inputs: MetricInputs) -> dict[str, float]:
    return scores_from_features(inputs.features, inputs.reference, metrics=inputs.metrics, seed=inputs.seed)


def _density(inputs: MetricInputs) -> dict[str, float]:
    return density_coverage(inputs.features.features_NF, inputs.reference.features_NF)


def _ssim(inputs: MetricInputs) -> dict[str, float]:
    return pairwise_ssim(inputs.images_N3HW, labels_N=inputs.labels_N)


def _codes(inputs: MetricInputs) -> dict[str, float]:
    return code_statistics(inputs.tokens_NL, scales=inputs.vqvae.scales, vocab_size=inputs.vqvae.vocab_size)


def _copies(inputs: MetricInputs) -> dict[str, float]:
    return copy_statistics(
        inputs.tokens_NL,
        inputs.labels_N,
        inputs.training_tokens_ML,
        inputs.training_labels_M,
        inputs.held_out_tokens_ML,
        inputs.held_out_labels_M,
    )


def _classes(inputs: MetricInputs) -> dict[str, float]:
    return {"conditional_accuracy": conditional_accuracy(inputs.features.logits_NY, inputs.labels_N)}


def _likelihood(inputs: MetricInputs) -> dict[str, float]:
    return likelihood(
        inputs.var,
        inputs.vqvae,
        inputs.held_out_tokens_ML,
        inputs.held_out_labels_M,
        chunk=inputs.chunk,
        device=inputs.device,
    )


def _scorecard(inputs: MetricInputs) -> dict[str, float]:
    return scorecard(
        inputs.var,
        inputs.vqvae,
        inputs.held_out_tokens_ML,
        inputs.held_out_labels_M,
        loss=inputs.loss,
        classes_V=inputs.classes_V,
        reference_variance_K=inputs.reference_variance_K,
        chunk=inputs.chunk,
    )


_HELD_OUT_TOKENS = ("held_out_tokens_ML", "held_out_labels_M")
_HELD_OUT = ("var", "vqvae", *_HELD_OUT_TOKENS)
FAMILIES = {
    "fidelity": Family(_fidelity, ("features", "reference")),
    "density": Family(_density, ("features", "reference")),
    "ssim": Family(_ssim, ("images_N3HW",)),
    "codes": Family(_codes, ("tokens_NL", "vqvae")),
    "copies": Family(_copies, ("tokens_NL", "labels_N", "training_tokens_ML", "training_labels_M", *_HELD_OUT_TOKENS)),
    "classes": Family(_classes, ("features", "labels_N")),
    "likelihood": Family(_likelihood, _HELD_OUT),
    "scorecard": Family(_scorecard, (*_HELD_OUT, "loss", "classes_V", "reference_variance_K")),
}


def evaluate(inputs: MetricInputs, families: Iterable[str]) -> dict[str, float]:
    """The values of all ``families``, each name known to the metric registry.

    Raises:
        ConfigError: an unknown family, or one whose input is missing; raised before anything is computed.
    """
    families = list(families)
    for name in families:
        family = FAMILIES[choose(name, FAMILIES, "metric family")]
        missing = [field for field in family.needs if getattr(inputs, field) is None]
        if missing:
            raise ConfigError(f"needs {', '.join(missing)}", where=f"metric family {name!r}")
    scores: dict[str, float] = {}
    for name in families:
        values = FAMILIES[name].compute(inputs)
        for key in values:
            metric(key)
        scores |= values
    return scores
