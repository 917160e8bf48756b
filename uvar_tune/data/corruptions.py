"""Corrupted and out-of-distribution images to test robustness on small images: the benchmark `digits-c8`.

Eight kinds of corruption at five severities, after ImageNet-C (Hendrycks & Dietterich 2019) but made for 16x16 pixels.
Noise is drawn per image index, so the corruption of an image is independent of batch and order.

Shapes: N images, H, W; uint8 in and out.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from uvar_tune import seeds
from uvar_tune.errors import ConfigError, choose

BENCHMARK = "digits-c8"
SEVERITIES = (1, 2, 3, 4, 5)


def corrupt(images_N3HW: Tensor, kind: str, severity: int, *, seed: int = 0, start: int = 0) -> Tensor:
    """uint8 images under one corruption.

    Args:
        images_N3HW: uint8.
        kind: one of `CORRUPTIONS`.
        severity: 1 … 5.
        seed: of the noise.
        start: image i draws its noise from (seed, kind, start + i), the same at all severities.

    Raises:
        ConfigError: an unknown kind or severity.
    """
    choose(kind, CORRUPTIONS, "corruption")
    if severity not in SEVERITIES:
        raise ConfigError(
            f"severity {severity} is not one of 1 … 5",
            where=f"corruption {kind}",
            nearest=str(min(5, max(1, severity))),
        )
    apply, strengths = CORRUPTIONS[kind]
    unit_N3HW = images_N3HW.float() / 255
    noise = _Noise(images_N3HW, seed, kind, start)
    return (apply(unit_N3HW, strengths[severity - 1], noise) * 255).round().clamp(0, 255).to(torch.uint8)


def out_of_distribution(images_N3HW: Tensor, kind: str, *, seed: int = 0, start: int = 0) -> Tensor:
    """uint8 images out of distribution: `noise` keeps only the shape, `inverted` exchanges light and dark.

    Args:
        images_N3HW: uint8.
        kind: one of `OUT_OF_DISTRIBUTION`.
        seed: as `corrupt`.
        start: as `corrupt`.
    """
    choose(kind, OUT_OF_DISTRIBUTION, "out-of-distribution set")
    if kind == "inverted":
        return 255 - images_N3HW
    return (_Noise(images_N3HW, seed, kind, start).uniform() * 255).round().to(torch.uint8)


class _Noise:
    """Random numbers of each image, drawn from its own generator; equal in the three channels."""

    def __init__(self, images_N3HW: Tensor, seed: int, kind: str, start: int):
        self.count, _, self.height, self.width = images_N3HW.shape
        self._seed = (seed, zlib.crc32(kind.encode()))
        self._start = start

    def _draw(self, sample: Callable[[torch.Generator], Tensor]) -> Tensor:
        return torch.stack([sample(seeds.generator(*self._seed, self._start + i)) for i in range(self.count)])

    def normal(self) -> Tensor:
        """(N, 3, H, W) standard normal."""
        return self._draw(lambda g: torch.randn(1, self.height, self.width, generator=g)).expand(-1, 3, -1, -1)

    def uniform(self) -> Tensor:
        """(N, 3, H, W) uniform in [0, 1)."""
        return self._draw(lambda g: torch.rand(1, self.height, self.width, generator=g)).expand(-1, 3, -1, -1)

    def numbers(self, count: int) -> Tensor:
        """(N, count) uniform in [0, 1)."""
        return self._draw(lambda g: torch.rand(count, generator=g))


def _gaussian_noise(x: Tensor, strength: float, noise: _Noise) -> Tensor:
    return x + strength * noise.normal()


def _impulse_noise(x: Tensor, strength: float, noise: _Noise) -> Tensor:
    """Set a share of the pixels to black or white."""
    u = noise.uniform()
    return torch.where(u < strength / 2, 0.0, torch.where(u > 1 - strength / 2, 1.0, x))


def _gaussian_blur(x: Tensor, strength: float, noise: _Noise) -> Tensor:
    reach = 4
    offset = torch.arange(-reach, reach + 1, dtype=torch.float32)
    line = (-(offset**2) / (2 * strength**2)).exp()
    return _filter(x, torch.outer(line, line))


def _motion_blur(x: Tensor, strength: float, noise: _Noise) -> Tensor:
    """Blur along the diagonal."""
    return _filter(x, torch.eye(int(strength)))


def _filter(x: Tensor, kernel: Tensor) -> Tensor:
    low, high = (len(kernel) - 1) // 2, len(kernel) // 2
    weight = (kernel / kernel.sum()).expand(3, 1, -1, -1)
    return functional.conv2d(functional.pad(x, (low, high, low, high), mode="replicate"), weight, groups=3)


def _contrast(x: Tensor, strength: float, noise: _Noise) -> Tensor:
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * strength


def _brightness(x: Tensor, strength: float, noise: _Noise) -> Tensor:
    return x + strength


def _pixelate(x: Tensor, strength: float, noise: _Noise) -> Tensor:
    """Average to a share of the resolution, then upsample."""
    small = functional.adaptive_avg_pool2d(x, max(2, round(strength * x.shape[-1])))
    return functional.interpolate(small, size=x.shape[2:], mode="nearest")


def _occlusion(x: Tensor, strength: float, noise: _Noise) -> Tensor:
    """Draw a grey square at a random position; the strength is its side as a share of the image's."""
    corner_N2 = noise.numbers(2)
    height, width = x.shape[2:]
    side = strength * min(height, width)
    top, left = (corner_N2 * (torch.tensor([height, width]) - side)).floor().unbind(1)
    row, column = torch.arange(height)[None, :, None], torch.arange(width)[None, None, :]
    inside = (
        (row >= top[:, None, None])
        & (row < top[:, None, None] + side)
        & (column >= left[:, None, None])
        & (column < left[:, None, None] + side)
    )
    return torch.where(inside[:, None], 0.5, x)


# kind → (function, strength at severities 1 … 5)
CORRUPTIONS: dict[str, tuple[Callable[[Tensor, float, _Noise], Tensor], tuple[float, ...]]] = {
    "gaussian_noise": (_gaussian_noise, (0.08, 0.14, 0.22, 0.32, 0.45)),
    "impulse_noise": (_impulse_noise, (0.04, 0.08, 0.14, 0.22, 0.32)),
    "gaussian_blur": (_gaussian_blur, (0.7, 1.0, 1.4, 1.9, 2.5)),
    "motion_blur": (_motion_blur, (3, 4, 5, 7, 9)),
    "contrast": (_contrast, (0.7, 0.55, 0.42, 0.32, 0.25)),
    "brightness": (_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "pixelate": (_pixelate, (0.45, 0.38, 0.32, 0.25, 0.19)),
    "occlusion": (_occlusion, (0.2, 0.28, 0.36, 0.44, 0.52)),
}
OUT_OF_DISTRIBUTION = ("noise", "inverted")
