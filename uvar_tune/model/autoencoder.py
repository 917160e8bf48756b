"""Encoder and decoder of the VQ-VAE, in the layout of latent diffusion (Rombach et al. 2022).

Attention is applied at the lowest resolution only.

Legend: B batch, C channels, H, W size, N = H·W positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

CACHED_NUMBERS = 2**20  # float32 activations that stay in the cache: 4 MiB
CHANNELS_LAST_NUMBERS = 2**17  # activations per image from which channels-last convolutions are faster
Stage = tuple[Callable[[torch.Tensor], torch.Tensor], int, int]  # (function, channels, halvings of the image size)


def norm(channels: int) -> nn.GroupNorm:
    """GroupNorm of 32 groups, or of gcd(32, channels) if 32 do not divide ``channels``."""
    return nn.GroupNorm(math.gcd(32, channels), channels, eps=1e-6)


class ResBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1x1 convolution on the shortcut if the channels change."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.norm1 = norm(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = norm(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        if channels_in != channels_out:
            self.nin_shortcut = nn.Conv2d(channels_in, channels_out, 1)
        else:
            self.nin_shortcut = nn.Identity()

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) → features of the next layer."""
        h = self.conv1(F.silu(self.norm1(x_BCHW), inplace=True))
        h = self.conv2(F.silu(self.norm2(h), inplace=True))
        return self.nin_shortcut(x_BCHW) + h


class Attention(nn.Module):
    """Single-head self-attention over all positions, with a residual connection.

    Two explicit matrix products: a fused kernel rounds differently, and rounding can change a token.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm = norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) → features of the next layer."""
        q_BCN, k_BCN, v_BCN = self.qkv(self.norm(x_BCHW)).flatten(2).chunk(3, dim=1)
        scores_BNN = torch.bmm(q_BCN.transpose(1, 2), k_BCN) * x_BCHW.shape[1] ** -0.5
        mixed_BCN = torch.bmm(v_BCN, scores_BNN.softmax(-1).transpose(1, 2))
        return x_BCHW + self.proj_out(mixed_BCN.view_as(x_BCHW))


class Downsample(nn.Module):
    """3x3 convolution with stride 2, padded at the right and the bottom."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) → features of the next layer."""
        return self.conv(F.pad(x_BCHW, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbour x2, then a 3x3 convolution, as one transposed convolution with 4/9 of the multiplications.

    Several of the nine weights of an output pixel meet the same input pixel; their sums form a 4x4 kernel.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) → features of the next layer."""
        kernel_IO44 = _doubled(_doubled(self.conv.weight, 2), 3).transpose(0, 1)
        fast_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)  # the fast layout of this kernel on a CPU
        doubled = F.conv_transpose2d(fast_BCHW, kernel_IO44, self.conv.bias, stride=2, padding=1)
        return doubled if fast_BCHW is x_BCHW else doubled.contiguous()


def _doubled(weight: torch.Tensor, dim: int) -> torch.Tensor:
    """Three taps on the upsampled signal as four taps of a transposed convolution with stride 2."""
    first, middle, last = weight.unbind(dim)
    return torch.stack((last, middle + last, first + middle, first), dim)


class Level(nn.Module):
    """Residual blocks of one resolution, each followed by attention if ``attentive``."""

    def __init__(self, channels_in: int, channels_out: int, blocks: int, attentive: bool):
        super().__init__()
        widths = [channels_in, *[channels_out] * blocks]
        self.block = nn.ModuleList(ResBlock(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))
        self.attn = nn.ModuleList(Attention(channels_out) for _ in range(blocks if attentive else 0))

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) → features of the next layer."""
        for i, block in enumerate(self.block):
            x_BCHW = block(x_BCHW)
            if self.attn:
                x_BCHW = self.attn[i](x_BCHW)
        return x_BCHW


class Middle(nn.Module):
    """Residual block, attention, residual block."""

    def __init__(self, channels: int):
        super().__init__()
        self.block_1 = ResBlock(channels, channels)
        self.attn_1 = Attention(channels)
        self.block_2 = ResBlock(channels, channels)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) → features of the next layer."""
        return self.block_2(self.attn_1(self.block_1(x_BCHW)))


class Encoder(nn.Module):
    """Images (B, 3, S, S) → features (B, code_dim, S / 2^(levels-1), same)."""

    def __init__(self, channels: int, multipliers: Sequence[int], code_dim: int, blocks: int):
        super().__init__()
        widths, last = [channels * m for m in (1, *multipliers)], len(multipliers) - 1
        self.widths = widths
        self.conv_in = nn.Conv2d(3, channels, 3, padding=1)
        self.down = nn.ModuleList()
        for i in range(len(multipliers)):
            level = Level(widths[i], widths[i + 1], blocks, attentive=i == last)
            if i != last:
                level.downsample = Downsample(widths[i + 1])
            self.down.append(level)
        self.mid = Middle(widths[-1])
        self.norm_out = norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], code_dim, 3, padding=1)

    def forward(self, images_B3HW: torch.Tensor) -> torch.Tensor:
        """Features of the images."""
        return _run_stages(self, images_B3HW)

    def stages(self) -> Iterator[Stage]:
        """The stages of `forward`, from the highest resolution."""
        for i in range(len(self.down)):
            yield partial(self._level, i), max(self.widths[i : i + 2]), i

    def _level(self, i: int, h: torch.Tensor) -> torch.Tensor:
        h = self.down[i](h if i else self.conv_in(h))
        if i + 1 < len(self.down):
            return self.down[i].downsample(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h)), inplace=True))


class Decoder(nn.Module):
    """Features (B, code_dim, h, w) → images; ``up[0]`` is the highest resolution and runs last."""

    def __init__(self, channels: int, multipliers: Sequence[int], code_dim: int, blocks: int):
        super().__init__()
        widths, last = [channels * m for m in multipliers], len(multipliers) - 1
        self.widths = widths
        self.conv_in = nn.Conv2d(code_dim, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList()
        for i in range(len(multipliers)):
            level = Level(widths[min(i + 1, last)], widths[i], blocks + 1, attentive=i == last)
            if i != 0:
                level.upsample = Upsample(widths[i])
            self.up.append(level)
        self.norm_out = norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, features_BCHW: torch.Tensor) -> torch.Tensor:
        """Images of the features, not clamped."""
        return _run_stages(self, features_BCHW)

    def stages(self) -> Iterator[Stage]:
        """The stages of `forward`, from the lowest resolution."""
        for i in reversed(range(len(self.up))):
            yield partial(self._level, i), max(self.widths[i : i + 2]), i

    def _level(self, i: int, h: torch.Tensor) -> torch.Tensor:
        h = self.up[i + 1].upsample(h) if i + 1 < len(self.up) else self.mid(self.conv_in(h))
        h = self.up[i](h)
        return h if i else self.conv_out(F.silu(self.norm_out(h), inplace=True))


def _run_stages(network: Encoder | Decoder, x_BCHW: torch.Tensor) -> torch.Tensor:
    for run, _, _ in network.stages():
        x_BCHW = run(x_BCHW)
    return x_BCHW


def in_chunks(network: Encoder | Decoder, x_BCHW: torch.Tensor, size: int) -> torch.Tensor:
    """``network(x)`` without gradients; on a CPU each stage runs on few images, whose activations stay in the cache.

    Args:
        network: encoder or decoder.
        x_BCHW: its input.
        size: side of the images, in pixels.
    """
    if x_BCHW.device.type != "cpu":
        return network(x_BCHW)
    for run, channels, halvings in network.stages():
        numbers = channels * (size >> halvings) ** 2
        fast = torch.channels_last if numbers >= CHANNELS_LAST_NUMBERS else torch.contiguous_format
        chunks = [run(part.contiguous(memory_format=fast)) for part in x_BCHW.split(max(1, CACHED_NUMBERS // numbers))]
        x_BCHW = torch.cat(chunks) if len(chunks) > 1 else chunks[0]
    return x_BCHW.contiguous()
