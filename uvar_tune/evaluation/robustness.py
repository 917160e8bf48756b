"""Robustness of the class read-out (Table 3): error under corruptions (mCE) and out-of-distribution detection (AUROC).

Images are tokenized, then classified and scored by log p(R | y).

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
class TransformedImages:
    """Images that are transformed when they are read.

    Attributes:
        images: uint8 tensor, or anything with a length whose slices are uint8 tensors (an image folder).
        transform: called with (images, start) of a slice; its result must not depend on how the images are sliced.
    """

    images: Any
    transform: Callable[[Tensor, int], Tensor]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice) -> Tensor:
        return self.transform(torch.as_tensor(self.images[rows]), rows.start or 0)


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
    """`digits-c8`: ``images`` under each kind of corruption at each severity, corrupted when they are read."""
    severities = tuple(severities)

    def under(kind: str, severity: int) -> TransformedImages:
        return TransformedImages(images, lambda part, start: corrupt(part, kind, severity, seed=seed, start=start))

    return [Corrupted(kind, severity, under(kind, severity), labels_N) for kind in kinds for severity in severities]


def out_of_distribution_sets(images, *, seed: int = 0) -> dict[str, TransformedImages]:
    """`noise` and `inverted`, each made of ``images`` and of the same number."""

    def under(kind: str) -> TransformedImages:
        return TransformedImages(images, lambda part, start: out_of_distribution(part, kind, seed=seed, start=start))

    return {kind: under(kind) for kind in OUT_OF_DISTRIBUTION}


def tokenize(vqvae, images, *, chunk: int = 64, device="cpu") -> Tensor:
    """Tokens of indexable uint8 images, (N, L), in chunks of one fixed size.

    Raises:
        ConfigError: no images, or images of another resolution.
    """
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
    """The class log-likelihoods log p(R | y) of indexable uint8 images: (N, Y) float64."""
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
    """Errors of the class read-out, for `mean_corruption_error`.

    Args:
        var: the transformer.
        vqvae: the tokenizer.
        sets: `corrupted_sets`, or those of `imagenet_c`.
        chunk: images processed at once.
        device: of the networks.
        progress: called with (sets done, sets) after each of them.

    Returns:
        kind → share of misclassified images at each severity, in the order of ``sets``.
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
    """Detection of out-of-distribution images by −log mean_y p(R | y).

    Args:
        var: the transformer.
        vqvae: the tokenizer.
        inside: images of the distribution.
        outside: name → images outside of it.
        chunk: images processed at once.
        device: of the networks.

    Returns:
        `auroc_ood/NAME` of each set, and `auroc_ood`, the mean over the sets other than `noise` and `inverted`, which
        are trivial to detect. The mean is missing if there is no other set.

    Raises:
        ConfigError: no out-of-distribution images.
    """
    if not outside:
        raise ConfigError("there are no out-of-distribution images", where="auroc_ood")
    inside_N = ood_score(read_out(var, vqvae, inside, chunk=chunk, device=device))
    scores = {
        f"auroc_ood/{name}": auroc(inside_N, ood_score(read_out(var, vqvae, images, chunk=chunk, device=device)))
        for name, images in outside.items()
    }
    hard = [scores[f"auroc_ood/{name}"] for name in outside if name not in OUT_OF_DISTRIBUTION]
    return scores | ({"auroc_ood": sum(hard) / len(hard)} if hard else {})
