"""What a user can get wrong in the objective, refused with value and rule before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral

import torch

from uvar_tune.errors import ConfigError, choose
from uvar_tune.objective.discrepancy import DISCREPANCIES, KL_LEAST_REFERENCE
from uvar_tune.objective.dispersion import DISPERSIONS
from uvar_tune.objective.first_order import FIRST_ORDER

NORMALIZATIONS = ("relative", "none")


def check_combination(
    *,
    reference: str | None = None,
    dispersion: str = "embedding",
    discrepancy: str = "wasserstein",
    normalize: str = "relative",
    condition_on: str = "scale",
    first_order: str = "ce",
) -> None:
    """Refuse names that do not exist and combinations that mean nothing, with the reason.

    Raises:
        ConfigError: the value, the rule and the nearest valid name.
    """
    choose(dispersion, DISPERSIONS, "dispersion", "loss.dispersion")
    choose(discrepancy, DISCREPANCIES, "discrepancy", "loss.discrepancy")
    choose(normalize, NORMALIZATIONS, "normalization", "loss.normalize")
    choose(first_order, FIRST_ORDER, "first-order term", "loss.first_order")
    choose(condition_on, ("scale", "class"), "condition", "loss.condition_on")
    if condition_on == "class" and reference not in (None, "dataset"):
        rule = "only the reference 'dataset' is estimated from labelled tokens"
        raise ConfigError(
            f"condition_on 'class' with reference {reference!r}: {rule}", where="loss.condition_on", nearest="scale"
        )
    if (reference, dispersion, discrepancy) == ("uniform", "probability", "kl"):
        reason = (
            "the uniform distribution has no variance across the vocabulary: the KL to a normal without is infinite"
        )
        raise ConfigError(
            f"discrepancy 'kl' with reference 'uniform' and dispersion 'probability': {reason}",
            where="loss.discrepancy",
            nearest="wasserstein",
        )


def check_weights(lambda_1: float, lambda_2: float, kl_smoothing: float, epsilon: float, alpha: float) -> None:
    """Ranges of the numbers; λ2 < 1 because from 1 on the minimiser of CE + λ2·H breaks ties arbitrarily."""
    rules = (
        ("loss.lambda_1", lambda_1, 0.0 <= lambda_1 < math.inf, "0 <= lambda_1 < infinity"),
        ("loss.lambda_2", lambda_2, 0.0 <= lambda_2 < 1.0, "0 <= lambda_2 < 1"),
        ("loss.kl_smoothing", kl_smoothing, 0.0 <= kl_smoothing < math.inf, "0 <= kl_smoothing < infinity"),
        ("loss.epsilon", epsilon, 0.0 <= epsilon <= 1.0, "0 <= epsilon <= 1"),
        ("loss.alpha", alpha, 0.0 <= alpha < 1.0, "0 <= alpha < 1"),
    )
    for where, value, holds, rule in rules:
        if not holds:
            raise ConfigError(f"{value} breaks {rule}", where=where)


def check_scales(scales: Sequence[int]) -> None:
    if not scales or any(not isinstance(p, Integral) or p < 1 for p in scales):
        raise ConfigError(f"{tuple(scales)}, expected patch sizes: one or more integers >= 1", where="scales")


def check_shapes(targets_BL: torch.Tensor, shape: Sequence[int], vocabulary: int, scales: Sequence[int]) -> None:
    """Predictions (B, L, V) for the codebook, scales that sum to L, integer targets (B, L). Looks at no value."""
    length = sum(p * p for p in scales)
    if len(shape) != 3 or shape[-1] != vocabulary:
        raise ConfigError(f"shape {tuple(shape)}, the codebook asks for (B, L, {vocabulary})", where="logits")
    if shape[1] != length:
        raise ConfigError(
            f"scales {tuple(scales)} have {length} positions (squares), the predictions have shape {tuple(shape)}",
            where="scales",
        )
    if tuple(targets_BL.shape) != tuple(shape[:2]):
        raise ConfigError(f"shape {tuple(targets_BL.shape)}, the predictions have {tuple(shape)}", where="targets")
    if targets_BL.is_floating_point() or targets_BL.dtype == torch.bool:
        raise ConfigError(f"dtype {targets_BL.dtype}, codes are integers", where="targets")
    if targets_BL.numel() == 0:
        raise ConfigError(f"shape {tuple(shape)} holds no position", where="targets")


def check_targets(targets_BL: torch.Tensor, vocabulary: int) -> None:
    """Codes within [0, V)."""
    low, high = (int(bound) for bound in torch.aminmax(targets_BL))
    if low < 0 or high >= vocabulary:
        raise ConfigError(f"{low if low < 0 else high} lies outside [0, {vocabulary}), the codes", where="targets")


def check_codebook(codebook_VC: torch.Tensor, vocabulary: int | None = None) -> None:
    """(V, C) with V >= 2; ``vocabulary`` codes where the predictions say how many."""
    if codebook_VC.ndim != 2 or (vocabulary is not None and len(codebook_VC) != vocabulary):
        expected = f"({'V' if vocabulary is None else vocabulary}, C)"
        raise ConfigError(f"shape {tuple(codebook_VC.shape)}, expected {expected}", where="codebook")
    if len(codebook_VC) < 2:
        raise ConfigError(f"{len(codebook_VC)} codes: a distribution needs at least 2", where="codebook")


def check_classes(classes_V: torch.Tensor, vocabulary: int) -> None:
    """One class for each code, numbered 0, 1, … without gaps."""
    if tuple(classes_V.shape) != (vocabulary,) or classes_V.is_floating_point():
        raise ConfigError(
            f"shape {tuple(classes_V.shape)} and dtype {classes_V.dtype}, expected one integer for each of the "
            f"{vocabulary} codes",
            where="classes",
        )
    if int(classes_V.min()) < 0:
        raise ConfigError(f"{int(classes_V.min())} is negative, classes count from 0", where="classes")
    empty = torch.bincount(classes_V) == 0
    if bool(empty.any()):
        gap, last = int(empty.nonzero()[0]), len(empty) - 1
        raise ConfigError(f"class {gap} has no code although class {last} has: numbers have no gaps", where="classes")


def check_reference(variance_K: torch.Tensor, scales: Sequence[int], anchor: float, discrepancy: str) -> None:
    """One finite σ²_⋆(k) >= 0 for each scale, in units of the dispersion; large enough for ``kl``."""
    if tuple(variance_K.shape) != (len(scales),):
        raise ConfigError(
            f"shape {tuple(variance_K.shape)}, expected one number for each of {len(scales)} scales",
            where="reference_variance",
        )
    values = variance_K.tolist()
    for k, value in enumerate(values):
        if not 0.0 <= value < math.inf:
            raise ConfigError(f"{value} at scale {k}: a variance is finite and >= 0", where="reference_variance")
        if discrepancy == "kl" and value < KL_LEAST_REFERENCE * anchor * (1 - 1e-6):
            raise ConfigError(
                f"{value:.3g} at scale {k} is below {KL_LEAST_REFERENCE} of the anchor ({anchor:.3g}): "
                "the KL to a normal of (nearly) no variance has no useful gradient",
                where="loss.discrepancy",
                nearest="wasserstein",
            )


def check_anchor(anchor: float) -> None:
    if not 0.0 < anchor < math.inf:
        raise ConfigError(
            f"its dispersion at the anchor is {anchor}: the codes must differ and be finite", where="codebook"
        )
