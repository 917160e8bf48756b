"""The reference distribution q⋆ and its dispersion σ²_⋆(k) (§2.3), fixed before training: one number a scale.

A new reference is a function (source, options) -> (variance_K, diagnostics) and a line in ``REFERENCES``, for example
the dispersion of the untempered token frequencies:

    def _frequency(source, options):
        return source.dispersion(torch.from_numpy(source.frequencies_KV)), {}
    REFERENCES["frequency"] = _frequency

Shapes: N images, L = Σ p_k² positions, P = p_k² of one scale, V codes, C code dimensions, K scales, U codes in use.
All in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from uvar_tune.errors import ConfigError, choose
from uvar_tune.objective import validate
from uvar_tune.objective.codebook import DISTANCES, distances
from uvar_tune.objective.codebook_kernel import kernel, rows_of_perplexity, width_of_perplexity
from uvar_tune.objective.dispersion import anchor_of, dispersion_of
from uvar_tune.objective.moments import Codes, prepare_codes
from uvar_tune.objective.tempering import temper_to_position_entropy

_ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class Reference:
    """σ²_⋆(k), float32 (K,), in units of ``dispersion`` before normalisation; ``diagnostics`` is JSON-able."""

    name: str
    dispersion: str
    variance_K: torch.Tensor
    diagnostics: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Options:
    neighbours: float
    perplexity: float
    condition_on: str
    distance: str


@dataclass(frozen=True)
class Source:
    """The tokens and the codebook that a reference is computed from."""

    codebook_VC: torch.Tensor
    codes: Codes
    tokens_NL: np.ndarray
    labels_N: np.ndarray
    scales: tuple[int, ...]
    dispersion_name: str

    @property
    def vocabulary(self) -> int:
        return len(self.codebook_VC)

    def dispersion(self, q_NV: torch.Tensor) -> torch.Tensor:
        """σ² of each row."""
        return dispersion_of(self.dispersion_name, q_NV, self.codes)

    def counts(self, label: int | None) -> list[np.ndarray]:
        """For each scale the (P, V) histograms of its positions, over all images or those of one label."""
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


def _uniform(source: Source, options: Options):
    """(i) Maximum entropy, 1/V."""
    q_1V = torch.full((1, source.vocabulary), 1.0 / source.vocabulary, dtype=torch.float64)
    return source.dispersion(q_1V).repeat(len(source.scales)), {}


def _dataset(source: Source, options: Options):
    """(ii) The histogram of a scale, tempered to the entropy that one of its positions has on average.

    Given the class, the histograms are those of one label. The loss keeps one number a scale, so σ²_⋆(k) is then the
    mean of σ²_⋆(k | label) over the labels by their frequency: what a model that knows the label shows on average.
    """
    labels, weights = [None], np.ones(1)
    if options.condition_on == "class":
        labels, images = np.unique(source.labels_N, return_counts=True)
        weights = images / images.sum()
    variance_K = torch.zeros(len(source.scales), dtype=torch.float64)
    report = {key: np.zeros(len(source.scales)) for key in ("entropy", "asked_entropy", "capped_share")}
    for label, weight in zip(labels, weights, strict=True):
        for k, counts_PV in enumerate(source.counts(label)):
            tempered = temper_to_position_entropy(counts_PV)
            variance_K[k] += weight * source.dispersion(torch.from_numpy(tempered.q_V)[None])[0]
            report["entropy"][k] += weight * tempered.entropy
            report["asked_entropy"][k] += weight * tempered.asked_entropy
            report["capped_share"][k] += weight * tempered.capped
    return variance_K, {
        "condition_on": options.condition_on,
        **{key: values.tolist() for key, values in report.items()},
    }


def _semantic(source: Source, options: Options):
    """(iii) A Gaussian kernel around each code, of a width that covers ``neighbours`` effective codes."""
    _check_range(options.neighbours, source.vocabulary, "neighbours")
    used_U = np.flatnonzero(source.pooled_V)
    distance_VV = distances(source.codebook_VC, options.distance)
    variance_U, reached_U = [], []
    for rows in torch.from_numpy(used_U).split(_ROWS_AT_ONCE):
        q_UV, reached = rows_of_perplexity(distance_VV[rows], options.neighbours)
        variance_U.append(source.dispersion(q_UV))
        reached_U.append(reached)
    crowded = int((torch.cat(reached_U) > options.neighbours * (1 + 1e-6)).sum())
    found = {"neighbours": options.neighbours, "distance": options.distance, "codes_with_more_twins": crowded}
    return source.at_scales(used_U, torch.cat(variance_U)), found


def _normal(source: Source, options: Options):
    """The paper's own choice: one width for all codes, the least spread that is not one-hot (end of §2.3)."""
    _check_range(options.perplexity, source.vocabulary, "perplexity")
    used_U = np.flatnonzero(source.pooled_V)
    distance_UV = distances(source.codebook_VC, options.distance)[torch.from_numpy(used_U)]
    width = width_of_perplexity(distance_UV, torch.from_numpy(source.pooled_V[used_U]), options.perplexity)
    variance_U = [source.dispersion(kernel(rows_UV, width)) for rows_UV in distance_UV.split(_ROWS_AT_ONCE)]
    found = {"perplexity": options.perplexity, "distance": options.distance, "width": width}
    return source.at_scales(used_U, torch.cat(variance_U)), found


REFERENCES = {"uniform": _uniform, "dataset": _dataset, "semantic": _semantic, "normal": _normal}


def _check_range(value: float, vocabulary: int, name: str) -> None:
    if not 1 < value < vocabulary:
        raise ConfigError(f"{value} breaks 1 < {name} < {vocabulary}, the number of codes", where=f"objective.{name}")


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
            raise ConfigError(f"{low if low < 0 else high} lies outside [0, {bound})", where=what)


def build_reference(
    name: str,
    *,
    codebook: torch.Tensor,
    tokens_NL,
    labels_N,
    scales: Sequence[int],
    dispersion: str = "embedding",
    num_classes: int,
    neighbours: float = 8,
    perplexity: float = 2.0,
    condition_on: str = "scale",
    distance: str = "euclidean",
) -> Reference:
    """σ²_⋆(k) of a reference, from the tokens of the training split.

    Args:
        name: ``uniform``, ``dataset``, ``semantic`` or ``normal``.
        codebook: (V, C).
        tokens_NL: (N, L) integers, NumPy (memory-mapped too) or torch, scales concatenated coarse to fine.
        labels_N: (N,) integers in [0, num_classes).
        dispersion: ``probability`` or ``embedding``, the unit of the result (before normalisation).
        neighbours: perplexity of each code's kernel in ``semantic``, 1 < neighbours < V.
        perplexity: mean perplexity of the kernels in ``normal``, 1 < perplexity < V.
        condition_on: ``scale``, or ``class`` to condition the histograms of ``dataset`` on the label too.
        distance: d0 of the kernels, ``euclidean`` or ``cosine`` (Eq. 7).

    Raises:
        ConfigError: unknown names, numbers out of range, tokens that do not fit scales or codebook, ``condition_on: class``
            with another reference than ``dataset``, a perplexity that no width reaches.
    """
    choose(name, REFERENCES, "reference", "loss.reference")
    choose(distance, DISTANCES, "distance", "loss.distance")
    validate.check_combination(reference=name, dispersion=dispersion, condition_on=condition_on)
    codebook_VC = codebook.detach().double().cpu()
    validate.check_codebook(codebook_VC)
    codes = prepare_codes(codebook_VC)
    anchor = anchor_of(dispersion, codes)
    validate.check_anchor(anchor)
    tokens_NL, labels_N = (x.cpu().numpy() if torch.is_tensor(x) else np.asanyarray(x) for x in (tokens_NL, labels_N))
    _check_tokens(tokens_NL, labels_N, scales, len(codebook_VC), num_classes)
    source = Source(codebook_VC, codes, tokens_NL, labels_N, tuple(scales), dispersion)
    variance_K, found = REFERENCES[name](source, Options(neighbours, perplexity, condition_on, distance))
    found |= {"anchor": anchor, "relative_variance": (variance_K / anchor).tolist()}
    return Reference(name, dispersion, variance_K.float(), found)
