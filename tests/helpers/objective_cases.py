"""Predictions, from ordinary to the edges of the simplex, for the tests of the loss.

Shapes: B batch, L positions, V codes, C code dimensions, K scales.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch

from tests.helpers import objective_oracle as oracle
from uvar_tune.config.schema import LossConfig
from uvar_tune.objective import DISCREPANCIES, DISPERSIONS, NORMALIZATIONS

SCALES, LENGTH, BATCH = (1, 2, 3), 14, 2
PREDICTIONS = ("plain", "sharp", "nearly_one_hot", "one_hot", "uniform", "nearly_uniform", "huge")
COMBINATIONS = list(itertools.product(DISPERSIONS, DISCREPANCIES, NORMALIZATIONS))


def problem(vocabulary, prediction="plain", seed=0, code_dim=6, batch=BATCH):
    """float32 logits, targets, codebook (not centred), classes."""
    rng = np.random.default_rng(seed)
    shape = (batch, LENGTH, vocabulary)
    spread = {"plain": 2.0, "sharp": 12.0, "nearly_uniform": 1e-3}.get(prediction, 0.0)
    logits = spread * rng.standard_normal(shape)
    favourite = rng.integers(vocabulary, size=shape[:2])
    if prediction in ("one_hot", "nearly_one_hot"):
        lead = {"one_hot": np.full(shape[:2], 500.0), "nearly_one_hot": rng.uniform(5, 35, shape[:2])}[prediction]
        np.put_along_axis(logits, favourite[..., None], lead[..., None], -1)
    if prediction == "huge":
        logits = rng.choice([-1e4, 1e4], size=shape)
    return {
        "logits": logits.astype(np.float32),
        "targets": rng.integers(vocabulary, size=shape[:2]),
        "codebook": (3.0 + rng.standard_normal((vocabulary, code_dim))).astype(np.float32),
        "classes": np.arange(vocabulary) % max(2, vocabulary // 16),
    }


def reference(dispersion, codebook, relative=(0.5, 0.9, 0.002)):
    return np.float32(np.array(relative) * oracle.anchor(dispersion, codebook.astype(np.float64)))


def exact(case, variance, logits=None, **settings):
    renamed = {
        f"{key}_name" if key in ("dispersion", "discrepancy", "first_order") else key: settings[key] for key in settings
    }
    return oracle.terms(
        case["logits"] if logits is None else logits,
        case["targets"],
        scales=SCALES,
        codebook=case["codebook"].astype(np.float64),
        classes=case["classes"],
        reference_variance=variance.astype(np.float64),
        **{"lambda_1": 0.3, "lambda_2": 0.2, **renamed},
    )


def loss_config(**settings):
    """Unvalidated, so that names may be registered by a test and strengths may reach the ends of their ranges."""
    return LossConfig().model_copy(update={"lambda_1": 0.3, "lambda_2": 0.2, **settings})


def settings_of(case, variance, **settings):
    """The keyword arguments of the losses: the configuration, and the constants."""
    return {
        "scales": settings.pop("scales", SCALES),
        "codebook": torch.from_numpy(case["codebook"]),
        "classes": torch.from_numpy(case["classes"]),
        "reference_variance": torch.from_numpy(variance),
        "config": loss_config(**settings),
    }


def head_of(case, width=None, dtype=torch.float32, seed=0):
    """Hidden states, weight and bias (leaves) that produce the case's logits, exactly where ``width`` is None."""
    logits_BLV = torch.tensor(case["logits"], dtype=dtype)
    vocabulary = logits_BLV.shape[-1]
    if width is None:
        parts = (logits_BLV, torch.eye(vocabulary, dtype=dtype), torch.zeros(vocabulary, dtype=dtype))
    else:
        generator = torch.Generator().manual_seed(seed)
        shapes = ((*logits_BLV.shape[:2], width), (vocabulary, width), (vocabulary,))
        parts = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    return [part.clone().requires_grad_() for part in parts]
