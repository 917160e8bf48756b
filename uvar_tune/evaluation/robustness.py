"""Robustness of the class read-out: error under corruptions (mCE) and detection of foreign images (AUROC).

Images go through the tokenizer and are judged by log p(R | y), as the paper's Table 3 has it.

Shapes: N images (uint8, N3HW, in memory or read by slices), B chunk, L positions, Y classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from uvar_tune.data.corruptions import CORRUPTIONS, OUT_OF_DISTRIBUTION, SEVERITIES, corrupt, out_of_distribution
from uvar_tune.errors import ConfigError
from uvar_tune.evaluation.calibration import auroc, ood_score
from uvar_tune.evaluation.features import check_images
from uvar_tune.evaluation.likelihood import class_log_likelihoods, evaluating
from uvar_tune.model.scales import concat


@dataclass(frozen=True)
class Changed:
    """Images as indexable as those they are made of, changed when they are read.

    Args:
        images: uint8 tensor, or anything with a length whose slices are uint8 tensors (an image folder).
        change: called with (images, start) of a slice; must not depend on how the images are sliced.
    """

    images: Any
    change: Callable[[Tensor, int], Tensor]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice) -> Tensor:
        return self.change(torch.as_tensor(self.images[rows]), rows.start or 0)


@dataclass(frozen=True)
class Corrupted:
    """Labelled images under one kind of corruption at one severity."""

    kind: str
    severity: int
    images: Any
    labels_N: Tensor


def corrupted_sets(
    images,
    labels_N: Tensor,
    *,
    kinds: Iterable[str] = tuple(CORRUPTIONS),
    severities: Iterable[int] = SEVERITIES,
    seed: int = 0,
) -> list[Corrupted]:
    """`digits-c8`: ``images`` under each kind at each severity, made when they are read."""
    severities = tuple(severities)

    def under(kind: str, severity: int) -> Changed:
        return Changed(images, lambda part, start: corrupt(part, kind, severity, seed=seed, start=start))

    return [Corrupted(kind, severity, under(kind, severity), labels_N) for kind in kinds for severity in severities]


def out_of_distribution_sets(images, *, seed: int = 0) -> dict[str, Changed]:
    """`noise` and `inverted`: as many foreign images as there are ``images``, made of them."""

    def turned(kind: str) -> Changed:
        return Changed(images, lambda part, start: out_of_distribution(part, kind, seed=seed, start=start))

    return {kind: turned(kind) for kind in OUT_OF_DISTRIBUTION}


def tokenize(vqvae, images, *, chunk: int = 64, device="cpu") -> Tensor:
    """tokens_NL of indexable uint8 images, in chunks of one fixed size. ConfigError for images of another resolution."""
    if not len(images):
        raise ConfigError("there are no images", where="images for the tokenizer")
    parts = []
    with evaluating(vqvae):
        for start in range(0, len(images), chunk):
            part_B3HW = torch.as_tensor(images[start : start + chunk])
            check_images(part_B3HW, where="images for the tokenizer", size=vqvae.image_size)
            padded = torch.cat([part_B3HW, part_B3HW[:1].expand(chunk - len(part_B3HW), -1, -1, -1)])
            parts.append(concat(vqvae.encode(padded.to(device).float() / 127.5 - 1))[: len(part_B3HW)].cpu())
    return torch.cat(parts)


def read_out(var, vqvae, images, *, chunk: int = 64, device="cpu") -> Tensor:
    """log p(R | y) of indexable uint8 images: (N, Y) float64."""
    tokens_NL = tokenize(vqvae, images, chunk=chunk, device=device)
    return class_log_likelihoods(var, vqvae, tokens_NL, chunk=chunk, device=device)


def corruption_errors(
    var,
    vqvae,
    sets: Sequence[Corrupted],
    *,
    chunk: int = 64,
    device="cpu",
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, list[float]]:
    """kind → share of images misread at each severity in the order given, for `mean_corruption_error`.

    Args:
        sets: `corrupted_sets`, or what was read from folders.
        progress: called with (sets done, sets) after each of them.
    """
    errors: dict[str, list[float]] = {}
    for done, one in enumerate(sets, start=1):
        guess_N = read_out(var, vqvae, one.images, chunk=chunk, device=device).argmax(1)
        errors.setdefault(one.kind, []).append(float((guess_N != torch.as_tensor(one.labels_N)).double().mean()))
        if progress:
            progress(done, len(sets))
    return errors


def mean_error(errors: Mapping[str, Sequence[float]]) -> float:
    """Plain mean of the errors over kinds and severities, in percent."""
    shares = [share for kind in errors.values() for share in kind]
    return 100.0 * sum(shares) / len(shares)


def ood_detection(var, vqvae, inside, outside: Mapping[str, Any], *, chunk: int = 64, device="cpu") -> dict[str, float]:
    """`auroc_ood/NAME` of each foreign set by −log mean_y p(R | y), and their mean, `auroc_ood`."""
    if not outside:
        raise ConfigError("there are no out-of-distribution images", where="auroc_ood")
    inside_N = ood_score(read_out(var, vqvae, inside, chunk=chunk, device=device))
    found = {
        f"auroc_ood/{name}": auroc(inside_N, ood_score(read_out(var, vqvae, images, chunk=chunk, device=device)))
        for name, images in outside.items()
    }
    return {"auroc_ood": sum(found.values()) / len(found), **found}
