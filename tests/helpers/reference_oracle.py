"""References (§2.3) by loops and bisection in NumPy: an independent oracle of the tests.

Shapes: N images, L positions, V codes.
"""

from __future__ import annotations

import numpy as np

from tests.helpers import objective_oracle as oracle


def entropy(q):
    return -sum(x * np.log(x) for x in q if x > 0)


def bisect(increasing, expected, low, high, steps=200):
    for _ in range(steps):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if increasing(middle) < expected else (low, middle)
    return 0.5 * (low + high)


def position_entropy(tokens):
    """Mean Miller–Madow entropy of the columns of (N, P) tokens."""
    result = []
    for column in tokens.T:
        _, counts = np.unique(column, return_counts=True)
        result.append(entropy(counts / len(column)) + (len(counts) - 1) / (2 * len(column)))
    return float(np.mean(result))


def tempered(tokens, vocabulary):
    """q ∝ p̂^(1/τ) on its support, of the mean positional entropy where a temperature reaches it."""
    p = np.bincount(tokens.ravel(), minlength=vocabulary) / tokens.size
    expected = position_entropy(tokens)

    def at(log_temperature):
        logs = np.log(p, where=p > 0, out=np.full_like(p, -np.inf)) / np.exp(log_temperature)
        q = np.exp(logs - logs.max())
        return q / q.sum()

    return at(bisect(lambda x: entropy(at(x)), expected, -12.0, 40.0))


def frequencies(tokens, scales, vocabulary):
    parts = np.split(tokens, np.cumsum([p * p for p in scales])[:-1], axis=1)
    return [np.bincount(part.ravel(), minlength=vocabulary) / part.size for part in parts], parts


def uniform(tokens, labels, codebook, scales, dispersion):
    vocabulary = len(codebook)
    return [oracle.dispersion(dispersion, np.full(vocabulary, 1 / vocabulary), codebook)] * len(scales)


def dataset(tokens, labels, codebook, scales, dispersion, condition_on="scale"):
    result = np.zeros(len(scales))
    groups = [np.ones(len(tokens), bool)] if condition_on == "scale" else [labels == y for y in np.unique(labels)]
    for rows in groups:
        _, parts = frequencies(tokens[rows], scales, len(codebook))
        variances = [oracle.dispersion(dispersion, tempered(part, len(codebook)), codebook) for part in parts]
        result += rows.mean() * np.array(variances)
    return result


def distance(codebook, name):
    if name == "euclidean":
        return np.array([[np.linalg.norm(u - v) for v in codebook] for u in codebook])
    unit = codebook / np.linalg.norm(codebook, axis=1, keepdims=True)
    return np.maximum(1 - unit @ unit.T, 0.0)


def around(distances, width):
    """Rows q(v|r) ∝ exp(−d²/2h²)."""
    logs = -0.5 * (distances / width) ** 2
    q = np.exp(logs - logs.max(1, keepdims=True))
    return q / q.sum(1, keepdims=True)


def over_scales(q, tokens, codebook, scales, dispersion):
    variance = np.array([oracle.dispersion(dispersion, row, codebook) for row in q])
    return [p @ variance for p in frequencies(tokens, scales, len(codebook))[0]]


def semantic(tokens, labels, codebook, scales, dispersion, neighbours=8, metric="euclidean"):
    q = []
    for row in distance(codebook, metric):

        def perplexity(log_width, row=row):
            return np.exp(entropy(around(row[None], np.exp(log_width))[0]))

        q.append(around(row[None], np.exp(bisect(perplexity, neighbours, -12.0, 8.0)))[0])
    return over_scales(q, tokens, codebook, scales, dispersion)


def normal(tokens, labels, codebook, scales, dispersion, perplexity=2.0, metric="euclidean"):
    distances, p = distance(codebook, metric), np.bincount(tokens.ravel(), minlength=len(codebook)) / tokens.size

    def mean_perplexity(log_width):
        return p @ [np.exp(entropy(q)) for q in around(distances, np.exp(log_width))]

    q = around(distances, np.exp(bisect(mean_perplexity, perplexity, -8.0, 8.0, steps=80)))
    return over_scales(q, tokens, codebook, scales, dispersion)
