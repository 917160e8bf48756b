"""Semantic entropy (Eq. 5), and the partitions of the codebook into semantic classes.

Within a scale VAR predicts positions independently. For classes of sequences that are products of per-position classes
the entropy is therefore the sum over positions (docs/method.md). A new partition is a function (codebook_VC float64
NumPy, count, distance, decode, seed) → V labels and a line in ``PARTITIONS``, for example

    def _norm(codebook, count, distance, decode, seed):
        return np.argsort(np.argsort((codebook**2).sum(1))) * count // len(codebook)
    PARTITIONS["norm"] = _norm

Shapes: N positions, V codes, C code dimensions, G classes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from uvar_tune.config.schema import LossConfig
from uvar_tune.errors import ConfigError, choose
from uvar_tune.objective.codebook_kernel import DISTANCES, distances

_KMEANS_STARTS = 4


def semantic_entropy(mass_NG: torch.Tensor) -> torch.Tensor:
    """−Σ_c P_c ln P_c at each position, in nats (Eq. 5); a floor keeps the gradient finite at P_c = 0."""
    return -(mass_NG * mass_NG.clamp_min(torch.finfo(mass_NG.dtype).tiny).log()).sum(-1)


def _kmeans(points: np.ndarray, count: int, seed: int) -> np.ndarray:
    from sklearn.cluster import KMeans

    return KMeans(count, n_init=_KMEANS_STARTS, random_state=seed % 2**32).fit(points).labels_


def _by_kmeans(codebook, count, distance, decode, seed):
    if distance == "cosine":  # on the sphere, where the Euclidean distance grows with the cosine distance
        codebook = codebook / np.linalg.norm(codebook, axis=1, keepdims=True)
    return _kmeans(codebook, count, seed)


def _by_agglomeration(codebook, count, distance, decode, seed):
    from sklearn.cluster import AgglomerativeClustering

    pairs = distances(torch.from_numpy(codebook), distance).numpy()
    return AgglomerativeClustering(count, metric="precomputed", linkage="complete").fit(pairs).labels_


def _by_reconstruction(codebook, count, distance, decode, seed):
    if decode is None:
        raise ConfigError("'reconstruction' compares decoded patches and needs decode=codes -> images", where="decode")
    with torch.no_grad():
        patches = torch.as_tensor(decode(torch.arange(len(codebook))))
    if len(patches) != len(codebook):
        raise ConfigError(f"{len(patches)} patches for {len(codebook)} codes, expected one per code", where="decode")
    return _kmeans(patches.reshape(len(patches), -1).double().cpu().numpy(), count, seed)


PARTITIONS = {"kmeans": _by_kmeans, "agglomerative": _by_agglomeration, "reconstruction": _by_reconstruction}


def build_classes(
    config: LossConfig,
    *,
    codebook: torch.Tensor,
    decode: Callable[[torch.Tensor], torch.Tensor] | None = None,
    seed: int = 0,
) -> torch.Tensor:
    """The configured partition of the V codes into semantic classes, numbered by first appearance.

    Args:
        config: section ``loss``: ``partition`` (``kmeans`` on the codes, ``agglomerative`` with complete linkage on d0,
            ``reconstruction`` by k-means on the image that each code decodes to), ``class_count`` (None is
            max(2, V // 16)) and ``distance`` (d0) are used.
        codebook: (V, C).
        decode: codes (n,) int64 → images (n, …); only for ``reconstruction``.
        seed: of the k-means starts.

    Returns:
        (V,) int64 on the CPU.

    Raises:
        ConfigError: unknown name, count outside [2, V], or fewer distinct codes than classes.
    """
    choose(config.partition, PARTITIONS, "partition", "loss.partition")
    choose(config.distance, DISTANCES, "distance", "loss.distance")
    vocabulary = len(codebook)
    count = max(2, vocabulary // 16) if config.class_count is None else config.class_count
    if not 2 <= count <= vocabulary:
        raise ConfigError(
            f"{count} classes of {vocabulary} codes: 2 <= count <= {vocabulary}", where="loss.class_count"
        )
    points_VC = codebook.detach().double().cpu().numpy()
    distinct = len(np.unique(points_VC, axis=0))
    if distinct < count:
        raise ConfigError(f"{count} classes, but only {distinct} codes are distinct", where="loss.class_count")
    labels_V = PARTITIONS[config.partition](points_VC, count, config.distance, decode, seed)
    _, first, inverse = np.unique(labels_V, return_index=True, return_inverse=True)
    if len(first) != count:
        raise ConfigError(
            f"partition {config.partition!r} found {len(first)} classes of {count}", where="loss.class_count"
        )
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return torch.from_numpy(rank[inverse.reshape(-1)])
