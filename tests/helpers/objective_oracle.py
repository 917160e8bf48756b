"""The loss written plainly in NumPy, in float64: an independent oracle of the tests.

Shapes: B batch, L positions, V codes, C code dimensions, K scales.
"""

from __future__ import annotations

import numpy as np


def softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return np.exp(log_p), log_p


def dispersion(name, p, codebook):
    if name == "probability":
        return ((p - 1.0 / p.shape[-1]) ** 2).mean(-1)
    mean = p @ codebook
    squared = ((codebook - mean[..., None, :]) ** 2).sum(-1)  # (..., V): two passes, nothing cancels
    return (p * squared).sum(-1)


def anchor(name, codebook):
    vocabulary = len(codebook)
    if name == "probability":
        return (1 / vocabulary) * (1 - 1 / vocabulary)
    return dispersion(name, np.full(vocabulary, 1 / vocabulary), codebook)


def discrepancy(name, a, b, unit, smoothing):
    if name == "squared":
        return (a - b) ** 2
    if name == "kl":
        r = ((a if smoothing else np.maximum(a, 1e-12 * unit)) + smoothing * b) / (b * (1 + smoothing))
        return 0.5 * (r - 1 - np.log(r))
    return (np.sqrt(np.maximum(a, 1e-12 * unit)) - np.sqrt(b)) ** 2


def first_order(name, p, log_p, targets, epsilon, alpha):
    log_y = np.take_along_axis(log_p, targets[..., None], -1)[..., 0]
    if name == "ce":
        return -log_y
    if name == "label_smoothing":
        target = np.full_like(p, epsilon / p.shape[-1])
        np.put_along_axis(target, targets[..., None], 1 - epsilon + epsilon / p.shape[-1], -1)
        return -(target * log_p).sum(-1)
    p_y = np.exp(log_y)
    others = p.copy()
    np.put_along_axis(others, targets[..., None], 0.0, -1)
    relaxed = alpha * others / np.maximum(others.sum(-1, keepdims=True), 1e-300)
    with np.errstate(divide="ignore", invalid="ignore"):
        rest = np.where(relaxed > 0, relaxed * (np.log(relaxed) - log_p), 0.0).sum(-1)
    return np.where(p_y >= 1 - alpha, 0.0, (1 - alpha) * (np.log(1 - alpha) - log_y) + rest)


def terms(
    logits,
    targets,
    *,
    scales,
    codebook,
    classes,
    reference_variance,
    lambda_1,
    lambda_2,
    dispersion_name="embedding",
    discrepancy_name="wasserstein",
    normalize="relative",
    kl_smoothing=1e-2,
    first_order_name="ce",
    epsilon=0.1,
    alpha=0.1,
):
    """dict of scalars, and the same per scale under ``per_scale``."""
    p, log_p = softmax(np.asarray(logits, dtype=np.float64))
    unit = anchor(dispersion_name, codebook) if normalize == "relative" else 1.0
    a = dispersion(dispersion_name, p, codebook) / unit
    b = np.repeat(reference_variance, [q * q for q in scales]) / unit
    mass = np.stack([p[..., classes == c].sum(-1) for c in range(classes.max() + 1)], -1)
    positions = {
        "ce": first_order("ce", p, log_p, targets, epsilon, alpha),
        "first_order": first_order(first_order_name, p, log_p, targets, epsilon, alpha),
        "second_order": discrepancy(discrepancy_name, a, b, anchor(dispersion_name, codebook) / unit, kl_smoothing),
        "semantic_entropy": -np.where(mass > 0, mass * np.log(np.where(mass > 0, mass, 1.0)), 0.0).sum(-1),
        "dispersion": a,
    }
    positions["total"] = (
        positions["first_order"] + lambda_1 * positions["second_order"] + lambda_2 * positions["semantic_entropy"]
    )
    ends = np.cumsum([q * q for q in scales])[:-1]
    result = {name: values.mean() for name, values in positions.items()}
    result["per_scale"] = {
        name: np.array([part.mean() for part in np.split(values, ends, axis=-1)]) for name, values in positions.items()
    }
    return result


def close(measured, exact):
    """The project's tolerance for float32 terms."""
    measured, exact = np.asarray(measured, dtype=np.float64), np.asarray(exact, dtype=np.float64)
    return bool(np.all(np.abs(measured - exact) <= 2e-4 * np.maximum(np.abs(exact), 1e-3) + 1e-6))
