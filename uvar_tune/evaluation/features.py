"""The digits feature network: a small classifier whose penultimate layer is used for FID, KID, precision and recall.

Inception's features mean little for 16x16 digits; a classifier of the data is the usual substitute. Its logits are
used for the Inception Score and for the accuracy of conditional samples. With 64 features FID's covariance is
well-conditioned from 1,000 samples on.

Shapes: N images, B batch, H, W height and width, F features (64), Y classes. Images are uint8.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from uvar_tune import seeds
from uvar_tune.errors import ConfigError, Diverged
from uvar_tune.io.atomic import write_bytes_atomic
from uvar_tune.io.hashing import state_sha256

FEATURES = 64
_WEIGHTS, _META = "classifier.safetensors", "meta.json"


class DigitClassifier(nn.Module):
    """Three convolutions and two linear layers over uint8 images of one fixed, square size.

    Args:
        image_size: height and width, a multiple of 4.
        class_names: names of the Y classes, in the order of the labels.
    """

    def __init__(self, *, image_size: int, class_names: list[str]):
        super().__init__()
        self.image_size, self.class_names = image_size, list(class_names)
        self.accuracy: float | None = None  # on held-out images, set by `train_classifier` and `load_classifier`
        self.body = nn.Sequential(
            nn.Conv2d(3, 24, 3, padding=1),
            nn.GroupNorm(4, 24),
            nn.SiLU(),
            nn.Conv2d(24, 48, 3, stride=2, padding=1),
            nn.GroupNorm(8, 48),
            nn.SiLU(),
            nn.Conv2d(48, 64, 3, stride=2, padding=1),
            nn.GroupNorm(8, 64),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(64 * (image_size // 4) ** 2, FEATURES),
            nn.SiLU(),
        )
        self.head = nn.Linear(FEATURES, len(self.class_names))

    def forward(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Compute (features_BF, logits_BY) of uint8 images; ConfigError for another resolution or type."""
        check_images(images_B3HW, where="digits feature network", size=self.image_size)
        return self._classify(images_B3HW.float() / 127.5 - 1)

    def _classify(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        features_BF = self.body(images_B3HW)
        return features_BF, self.head(features_BF)


@dataclass(frozen=True)
class ClassifierTraining:
    """Settings of `train_classifier`; 24 epochs over the digits take about ten CPU seconds.

    Attributes:
        epochs: passes over the images.
        batch_size: images a step.
        learning_rate: peak of the one-cycle schedule.
        weight_decay: of AdamW.
        label_smoothing: of the cross-entropy.
        degrees: largest rotation.
        shift: largest shift, as a share of the width.
        zoom: largest change of size, as a share.
    """

    epochs: int = 24
    batch_size: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.02
    label_smoothing: float = 0.05
    degrees: float = 10.0
    shift: float = 0.08
    zoom: float = 0.08


class LabelledImages(Protocol):
    """Images with labels, such as `uvar_tune.data.ImageSet`."""

    images: Tensor
    labels_N: Tensor
    class_names: list[str]


def check_images(images: Tensor, *, where: str, size: int | None = None) -> None:
    """Check type and shape of images.

    Raises:
        ConfigError: not a uint8 tensor (N, 3, H, W), or, if ``size`` is given, not square with that side.
    """
    if not torch.is_tensor(images) or images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
        actual = f"{images.dtype} {tuple(images.shape)}" if torch.is_tensor(images) else type(images).__name__
        raise ConfigError(f"images must be a uint8 tensor (N, 3, H, W), not {actual}", where=where)
    if size is not None and tuple(images.shape[2:]) != (size, size):
        raise ConfigError(f"images are {images.shape[2]}x{images.shape[3]}, expected {size}x{size}", where=where)


def to_uint8(images_N3HW: Tensor) -> Tensor:
    """Samples in [0, 1] as uint8, rounded to nearest, so that uint8 / 255 is restored exactly.

    Raises:
        Diverged: images that are not finite (NaN must not become a score).
    """
    invalid = (~torch.isfinite(images_N3HW)).flatten(1).any(1).nonzero().flatten()
    if len(invalid):
        raise Diverged(
            f"{len(invalid)} of {len(images_N3HW)} generated images are not finite "
            f"(the first is image {int(invalid[0])})"
        )
    return (images_N3HW.float() * 255).round_().clamp_(0, 255).to(torch.uint8)


def train_classifier(
    images: LabelledImages,
    *,
    held_out: LabelledImages,
    seed: int = 0,
    settings: ClassifierTraining | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> DigitClassifier:
    """Train a classifier, deterministically.

    Args:
        images: uint8 images (N, 3, H, W) with labels 0 … Y-1 and class names.
        held_out: on which ``accuracy`` is measured; it selects nothing.
        seed: of initialisation, order and augmentation.
        settings: of the training.
        progress: called after each epoch with (epochs done, epochs).
    """
    settings = settings or ClassifierTraining()
    images_N3HW, labels_N = torch.as_tensor(images.images), torch.as_tensor(images.labels_N).long()
    check_images(images_N3HW, where="training images of the feature network")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DigitClassifier(image_size=images_N3HW.shape[-1], class_names=list(images.class_names))
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    batches = math.ceil(len(images_N3HW) / settings.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=settings.epochs * batches
    )
    images_N3HW = images_N3HW.float() / 127.5 - 1
    for epoch in range(settings.epochs):
        generator = seeds.generator(seed, epoch)
        for index_B in torch.randperm(len(labels_N), generator=generator).split(settings.batch_size):
            batch_B3HW = _jitter(images_N3HW[index_B], settings, generator)
            loss = functional.cross_entropy(
                model._classify(batch_B3HW)[1], labels_N[index_B], label_smoothing=settings.label_smoothing
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if progress:
            progress(epoch + 1, settings.epochs)
    model.eval().requires_grad_(False)
    model.accuracy = conditional_accuracy(classify(model, held_out.images), held_out.labels_N)
    return model


def _jitter(images_B3HW: Tensor, settings: ClassifierTraining, generator: torch.Generator) -> Tensor:
    """Small random rotations, shifts and zooms, one an image; the border is repeated outwards."""
    angle_B, zoom_B, x_B, y_B = torch.rand(4, len(images_B3HW), generator=generator) * 2 - 1
    angle_B, zoom_B = angle_B * math.radians(settings.degrees), 1 + zoom_B * settings.zoom
    cos_B, sin_B = angle_B.cos() * zoom_B, angle_B.sin() * zoom_B
    # affine_grid counts in half widths, hence the 2
    rows = [cos_B, -sin_B, 2 * settings.shift * x_B, sin_B, cos_B, 2 * settings.shift * y_B]
    grid = functional.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(images_B3HW.shape), align_corners=False)
    return functional.grid_sample(images_B3HW, grid, padding_mode="border", align_corners=False)


@torch.no_grad()
def classify(model: DigitClassifier, images_N3HW: Tensor, *, chunk: int = 256) -> Tensor:
    """Logits (N, Y) of uint8 images, computed in chunks."""
    device = next(model.parameters()).device
    return torch.cat([model(part.to(device))[1].cpu() for part in torch.as_tensor(images_N3HW).split(chunk)])


def conditional_accuracy(logits_NY: Tensor, labels_N: Tensor) -> float:
    """Share of samples that the feature network classifies as their label."""
    return float((logits_NY.argmax(1) == torch.as_tensor(labels_N).to(logits_NY.device)).double().mean())


def save_classifier(model: DigitClassifier, directory: str | Path) -> Path:
    """Write the weights, then ``meta.json`` (size, classes, held-out accuracy, content hash), each atomically."""
    from safetensors.torch import save

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    meta = {
        "image_size": model.image_size,
        "class_names": model.class_names,
        "accuracy": model.accuracy,
        "content_hash": state_sha256(model),
    }
    write_bytes_atomic(
        directory / _WEIGHTS, save({name: value.contiguous() for name, value in model.state_dict().items()})
    )
    write_bytes_atomic(directory / _META, json.dumps(meta, indent=2).encode())
    return directory


def load_classifier(directory: str | Path) -> DigitClassifier:
    """Read what `save_classifier` wrote; ConfigError if files are missing or the content hash differs."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    directory = Path(directory)
    try:
        meta = json.loads((directory / _META).read_text(encoding="utf-8"))
        state = load((directory / _WEIGHTS).read_bytes())
        model = DigitClassifier(image_size=meta["image_size"], class_names=meta["class_names"])
        model.load_state_dict(state)
    except (OSError, ValueError, KeyError, SafetensorError, RuntimeError) as error:
        raise ConfigError(f"no digits feature network here ({error})", where=str(directory)) from error
    if state_sha256(model) != meta["content_hash"]:
        raise ConfigError(f"the weights do not have the hash that {_META} states", where=str(directory))
    model.accuracy = meta["accuracy"]
    return model.eval().requires_grad_(False)
