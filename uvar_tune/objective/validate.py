"""Checks of everything that a caller of the loss can get wrong; messages name the value and the rule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral

import torch

from uvar_tune.config.schema import LossConfig
from uvar_tune.errors import ConfigError, Diverged, choose
from uvar_tune.objective.discrepancy import DISCREPANCIES, KL_LEAST_REFERENCE
from uvar_tune.objective.dispersion import DISPERSIONS
from uvar_tune.objective.first_order import FIRST_ORDER

NORMALIZATIONS = ("relative", "none")


def check_config(config: LossConfig) -> None:
    """Registered names, and weights that can be computed with.

    ``LossConfig`` itself checks ranges; here its names are looked up in the registries, which may have grown.

    Raises:
        ConfigError: a name that is not registered, with the nearest; weights given as shares of the gradient.
    """
    choose(config.dispersion, DISPERSIONS, "dispersion", "loss.dispersion")
    choose(config.discrepancy, DISCREPANCIES, "discrepancy", "loss.discrepancy")
    choose(config.normalize, NORMALIZATIONS, "normalization", "loss.normalize")
    choose(config.first_order, FIRST_ORDER, "first-order term", "loss.first_order")
    if config.lambda_unit != "raw" and any(config.weights):
        raise ConfigError(
            f"weights {config.weights} are shares of the gradient: convert them with `weights_for_shares`",
            where="loss.lambda_unit",
            nearest="raw",
        )


def check_scales(scales: Sequence[int]) -> None:
    """One or more patch sizes, integers ≥ 1."""
    if not scales or any(not isinstance(p, Integral) or p < 1 for p in scales):
        raise ConfigError(f"{tuple(scales)}, expected patch sizes: one or more integers >= 1", where="scales")


def check_shapes(targets_BL: torch.Tensor, shape: Sequence[int], vocabulary: int, scales: Sequence[int]) -> None:
    """Predictions (B, L, V) for V codes, scales that sum to L, integer targets (B, L). Reads no value."""
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
    """Targets within [0, V)."""
    low, high = (int(bound) for bound in torch.aminmax(targets_BL))
    if low < 0 or high >= vocabulary:
        raise ConfigError(f"{low if low < 0 else high} is outside [0, {vocabulary}), the codes", where="targets")


def check_codebook(codebook_VC: torch.Tensor, vocabulary: int | None = None) -> None:
    """(V, C) with V ≥ 2, and V = ``vocabulary`` where given."""
    if codebook_VC.ndim != 2 or (vocabulary is not None and len(codebook_VC) != vocabulary):
        expected = f"({'V' if vocabulary is None else vocabulary}, C)"
        raise ConfigError(f"shape {tuple(codebook_VC.shape)}, expected {expected}", where="codebook")
    if len(codebook_VC) < 2:
        raise ConfigError(f"{len(codebook_VC)} codes: a distribution needs at least 2", where="codebook")


def check_classes(classes_V: torch.Tensor, vocabulary: int) -> None:
    """One class per code, numbered 0, 1, … without gaps."""
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
    """One finite σ²_⋆(k) ≥ 0 per scale, in units of the dispersion; large enough for ``kl``."""
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
    """A finite anchor above 0."""
    if not 0.0 < anchor < math.inf:
        raise ConfigError(
            f"its dispersion at the anchor is {anchor}: the codes must differ and be finite", where="codebook"
        )


def check_loss(
    total: torch.Tensor, ce: torch.Tensor, out_of_range: torch.Tensor, targets_BL: torch.Tensor, vocabulary: int
) -> None:
    """Check targets and loss with the only read from the device in a step.

    Args:
        total: the loss.
        ce: its cross-entropy.
        out_of_range: 0-d bool, whether a target is outside [0, V).
        targets_BL: the targets, to name the value.
        vocabulary: V.

    Raises:
        ConfigError: a target is outside [0, V).
        Diverged: total or cross-entropy is not finite.
    """
    bad_target, finite = torch.stack([out_of_range, torch.isfinite(total.detach() + ce.detach())]).tolist()
    if bad_target:
        check_targets(targets_BL, vocabulary)
    if not finite:
        raise Diverged(f"loss is not a finite number (total {total.item()}, cross-entropy {ce.item()})")
