"""The reference distribution q⋆ and its dispersion σ²_⋆(k) (§2.3), fixed before training: one number per scale.

A new reference is a function (source, config) → (variance_K, diagnostics) and a line in ``REFERENCES``, for example
the dispersion of the untempered token frequencies:

    def _frequency(source, config):
        return source.dispersion(torch.from_numpy(source.frequencies_KV)), {}
    REFERENCES["frequency"] = _frequency

Shapes: N images, L = Σ p_k² positions, P = p_k² positions of one scale, V codes, C code dimensions, K scales, U codes
in use. All in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from uvar_tune.config.schema import LossConfig
from uvar_tune.errors import ConfigError, choose
from uvar_tune.objective import validate
from uvar_tune.objective.codebook_kernel import DISTANCES, distances, kernel, rows_of_perplexity, width_of_perplexity
from uvar_tune.objective.dispersion import anchor_of, dispersion_of
from uvar_tune.objective.moments import Codes, prepare_codes

_ROWS_AT_ONCE = 512
_LARGEST_BETA = 2.0**40
_TIE = 1e-12
"""Entropies nearer than this, in nats, count as equal."""


@dataclass(frozen=True)
class Reference:
    """A reference.

    Attributes:
        name: in ``REFERENCES``.
        dispersion: name of the dispersion, the unit of ``variance_K``.
        variance_K: σ²_⋆(k), float32, before normalisation.
        diagnostics: plain data that JSON can hold.
    """

    name: str
    dispersion: str
    variance_K: torch.Tensor
    diagnostics: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """The tokens and the codebook from which a reference is computed."""

    codebook_VC: torch.Tensor
    codes: Codes
    tokens_NL: np.ndarray
    labels_N: np.ndarray
    scales: tuple[int, ...]
    dispersion_name: str

    @property
    def vocabulary(self) -> int:
        """V."""
        return len(self.codebook_VC)

    def dispersion(self, q_NV: torch.Tensor) -> torch.Tensor:
        """σ² of each row."""
        return dispersion_of(self.dispersion_name, q_NV, self.codes)

    def counts(self, label: int | None) -> list[np.ndarray]:
        """For each scale the histograms of its positions (P, V), over all images or those of one label."""
        rows = np.arange(len(self.tokens_NL)) if label is None else np.flatnonzero(self.labels_N == label)
        length = self.tokens_NL.shape[1]
        total = np.zeros(length * self.vocabulary, dtype=np.int64)
        offset_L = np.arange(length, dtype=np.int64) * self.vocabulary
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            cells = np.asarray(self.tokens_NL[rows[start : start + _ROWS_AT_ONCE]], dtype=np.int64) + offset_L
            total += np.bincount(cells.ravel(), minlength=len(total))
        ends = np.cumsum([p * p for p in self.scales])[:-1]
        return np.split(total.reshape(length, self.vocabulary), ends)

    @cached_property
    def frequencies_KV(self) -> np.ndarray:
        """Token frequencies at each scale."""
        return np.stack([counts_PV.sum(0) / counts_PV.sum() for counts_PV in self.counts(None)])

    @cached_property
    def pooled_V(self) -> np.ndarray:
        """Token frequencies over all positions of all scales."""
        sizes_K = np.array([p * p for p in self.scales], dtype=np.float64)
        return sizes_K @ self.frequencies_KV / sizes_K.sum()

    def at_scales(self, used_U: np.ndarray, variance_U: torch.Tensor) -> torch.Tensor:
        """The dispersion around each code in use, averaged over the token frequencies of each scale."""
        return torch.from_numpy(self.frequencies_KV[:, used_U]) @ variance_U


@dataclass(frozen=True)
class Tempered:
    """A tempered histogram q ∝ p̂^β on the support of p̂, β = 1/τ.

    Attributes:
        q_V: the distribution.
        entropy: of ``q_V``, in nats.
        target_entropy: in nats, before the cap.
        capped: whether no β reaches the target, so that the nearest end was taken.
    """

    q_V: np.ndarray
    entropy: float
    target_entropy: float
    capped: bool


def entropy(p_V: np.ndarray) -> float:
    """−Σ p ln p, in nats."""
    positive = p_V[p_V > 0]
    return float(-(positive * np.log(positive)).sum())


def position_entropy(counts_PV: np.ndarray) -> float:
    """Mean over positions of the entropy, Miller–Madow corrected by (m − 1)/2n for m codes seen in n draws."""
    draws_P = counts_PV.sum(1)
    corrections = ((counts_PV > 0).sum(1) - 1) / (2.0 * draws_P)
    return float(np.mean([entropy(row / n) for row, n in zip(counts_PV, draws_P, strict=True)] + corrections))


def temper_to_position_entropy(counts_PV: np.ndarray) -> Tempered:
    """The scale's pooled histogram, tempered so that its entropy is ``position_entropy``.

    The corrected entropy can exceed ln of the number of codes seen at the scale, the maximum on the support, and it can
    fall below the entropy of ties for the most frequent code. The nearest end is then taken and ``capped`` is set.
    """
    from scipy.optimize import brentq

    target = position_entropy(counts_PV)
    pooled_V = counts_PV.sum(0)
    support = pooled_V > 0
    logs = np.log(pooled_V[support] / pooled_V.sum())
    logs -= logs.max()

    def tempered(beta: float) -> np.ndarray:
        weights = np.exp(beta * logs)
        return weights / weights.sum()

    most, least = np.log(support.sum()), np.log((logs == 0).sum())
    if target >= most - _TIE:
        beta, capped = 0.0, target > most + _TIE
    elif target <= least + _TIE:
        beta, capped = np.inf, target < least - _TIE
    else:
        high = 1.0
        while entropy(tempered(high)) > target and high < _LARGEST_BETA:
            high *= 2.0
        beta, capped = brentq(lambda b: entropy(tempered(b)) - target, 0.0, high, xtol=1e-14, rtol=1e-14), False
    q_V = np.zeros(len(pooled_V))
    q_V[support] = tempered(beta) if np.isfinite(beta) else (logs == 0) / (logs == 0).sum()
    return Tempered(q_V, entropy(q_V), target, bool(capped))


def _uniform(source: Source, config: LossConfig):
    """(i) The distribution of maximum entropy, 1/V."""
    q_1V = torch.full((1, source.vocabulary), 1.0 / source.vocabulary, dtype=torch.float64)
    return source.dispersion(q_1V).repeat(len(source.scales)), {}


def _dataset(source: Source, config: LossConfig):
    """(ii) The histogram of a scale, tempered to the mean entropy of its positions.

    Conditioned on the class, the histograms are those of one label. As the loss holds one number per scale, σ²_⋆(k) is
    then the mean of σ²_⋆(k | label) by label frequency: what a model that knows the label shows on average.
    """
    labels, weights = [None], np.ones(1)
    if config.condition_on == "class":
        labels, images = np.unique(source.labels_N, return_counts=True)
        weights = images / images.sum()
    variance_K = torch.zeros(len(source.scales), dtype=torch.float64)
    report = {key: np.zeros(len(source.scales)) for key in ("entropy", "target_entropy", "capped_share")}
    for label, weight in zip(labels, weights, strict=True):
        for k, counts_PV in enumerate(source.counts(label)):
            tempered = temper_to_position_entropy(counts_PV)
            variance_K[k] += weight * source.dispersion(torch.from_numpy(tempered.q_V)[None])[0]
            report["entropy"][k] += weight * tempered.entropy
            report["target_entropy"][k] += weight * tempered.target_entropy
            report["capped_share"][k] += weight * tempered.capped
    return variance_K, {
        "condition_on": config.condition_on,
        **{key: values.tolist() for key, values in report.items()},
    }


def _semantic(source: Source, config: LossConfig):
    """(iii) A Gaussian kernel around each code, its width chosen to cover ``neighbours`` effective codes."""
    _check_range(config.neighbours, source.vocabulary, "neighbours")
    used_U = np.flatnonzero(source.pooled_V)
    distance_VV = distances(source.codebook_VC, config.distance)
    variance_U, reached_U = [], []
    for rows in torch.from_numpy(used_U).split(_ROWS_AT_ONCE):
        q_UV, reached = rows_of_perplexity(distance_VV[rows], config.neighbours)
        variance_U.append(source.dispersion(q_UV))
        reached_U.append(reached)
    crowded = int((torch.cat(reached_U) > config.neighbours * (1 + 1e-6)).sum())
    diagnostics = {"neighbours": config.neighbours, "distance": config.distance, "codes_with_more_twins": crowded}
    return source.at_scales(used_U, torch.cat(variance_U)), diagnostics


def _normal(source: Source, config: LossConfig):
    """The paper's own choice: one width for all codes, the smallest spread that is not one-hot (end of §2.3)."""
    _check_range(config.perplexity, source.vocabulary, "perplexity")
    used_U = np.flatnonzero(source.pooled_V)
    distance_UV = distances(source.codebook_VC, config.distance)[torch.from_numpy(used_U)]
    width = width_of_perplexity(distance_UV, torch.from_numpy(source.pooled_V[used_U]), config.perplexity)
    variance_U = [source.dispersion(kernel(rows_UV, width)) for rows_UV in distance_UV.split(_ROWS_AT_ONCE)]
    diagnostics = {"perplexity": config.perplexity, "distance": config.distance, "width": width}
    return source.at_scales(used_U, torch.cat(variance_U)), diagnostics


REFERENCES = {"uniform": _uniform, "dataset": _dataset, "semantic": _semantic, "normal": _normal}


def _check_range(value: float, vocabulary: int, name: str) -> None:
    if not 1 < value < vocabulary:
        raise ConfigError(f"{value} breaks 1 < {name} < {vocabulary}, the number of codes", where=f"loss.{name}")


def _check_tokens(
    tokens_NL: np.ndarray, labels_N: np.ndarray, scales: Sequence[int], vocabulary: int, num_classes: int
):
    length = sum(p * p for p in scales)
    if tokens_NL.ndim != 2 or tokens_NL.shape[1] != length or len(tokens_NL) == 0:
        raise ConfigError(f"shape {tokens_NL.shape}, scales {tuple(scales)} need (N > 0, {length})", where="tokens")
    if labels_N.shape != tokens_NL.shape[:1]:
        raise ConfigError(f"{labels_N.shape} labels for {len(tokens_NL)} rows of tokens", where="labels")
    for what, values, bound in (("tokens", tokens_NL, vocabulary), ("labels", labels_N, num_classes)):
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= bound:
            raise ConfigError(f"{low if low < 0 else high} is outside [0, {bound})", where=what)


def build_reference(
    config: LossConfig,
    *,
    codebook: torch.Tensor,
    tokens_NL,
    labels_N,
    scales: Sequence[int],
    num_classes: int,
) -> Reference:
    """σ²_⋆(k) of the configured reference, from the tokens of the training split.

    Args:
        config: section ``loss``: ``reference``, ``dispersion``, ``neighbours``, ``perplexity``, ``condition_on`` and
            ``distance`` are used.
        codebook: (V, C).
        tokens_NL: integers, NumPy (also memory-mapped) or torch, scales concatenated coarse to fine.
        labels_N: integers in [0, num_classes).
        scales: patch sizes p_k, coarse to fine.
        num_classes: labels of the data.

    Raises:
        ConfigError: unknown names, numbers out of range, tokens that do not fit scales or codebook, ``condition_on:
            class`` with another reference than ``dataset``, a perplexity that no width reaches.
    """
    choose(config.reference, REFERENCES, "reference", "loss.reference")
    choose(config.distance, DISTANCES, "distance", "loss.distance")
    validate.check_config(config.baseline())
    if config.condition_on == "class" and config.reference != "dataset":
        raise ConfigError(
            f"condition_on 'class' with reference {config.reference!r}: only the reference 'dataset' is estimated from "
            "labelled tokens",
            where="loss.condition_on",
            nearest="scale",
        )
    codebook_VC = codebook.detach().double().cpu()
    validate.check_codebook(codebook_VC)
    codes = prepare_codes(codebook_VC)
    anchor = anchor_of(config.dispersion, codes)
    validate.check_anchor(anchor)
    tokens_NL, labels_N = (x.cpu().numpy() if torch.is_tensor(x) else np.asanyarray(x) for x in (tokens_NL, labels_N))
    _check_tokens(tokens_NL, labels_N, scales, len(codebook_VC), num_classes)
    source = Source(codebook_VC, codes, tokens_NL, labels_N, tuple(scales), config.dispersion)
    variance_K, diagnostics = REFERENCES[config.reference](source, config)
    diagnostics |= {"anchor": anchor, "relative_variance": (variance_K / anchor).tolist()}
    return Reference(config.reference, config.dispersion, variance_K.float(), diagnostics)
