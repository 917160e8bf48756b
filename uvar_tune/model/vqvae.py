"""The tokenizer: images to tokens of K scales and back. State-dict names are those of the official VAR release.

Legend: B batch, K scales, p_k the side of scale k, L = Σ p_k², C code dimension, V codes, S image size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from uvar_tune.errors import ConfigError
from uvar_tune.model.autoencoder import Decoder, Encoder, in_parts
from uvar_tune.model.quantizer import Quantizer


class VQVAE(nn.Module):
    """Multi-scale VQ-VAE.

    Args:
        vocab_size: V.
        code_dim: C.
        channels: of the highest resolution; ``channel_multipliers`` gives each further one, halving the size each time.
        scales: (p_1, …, p_K), growing; p_K is the side of the encoder's output.
        quant_resi: weight r of φ's convolution; 0 leaves φ out.
        share_quant_resi: how many φ: 0 = one per scale, 1 = one for all, else so many, spread over the scales.
        beta: weight of the commitment term.
        blocks: residual blocks per level of the encoder (the decoder has one more).
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        code_dim: int,
        channels: int,
        scales: Sequence[int],
        channel_multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        quant_resi: float = 0.5,
        share_quant_resi: int = 4,
        beta: float = 0.25,
        blocks: int = 2,
    ):
        super().__init__()
        self._settings = {
            "vocab_size": int(vocab_size),
            "code_dim": int(code_dim),
            "channels": int(channels),
            "scales": list(scales),
            "channel_multipliers": list(channel_multipliers),
            "quant_resi": float(quant_resi),
            "share_quant_resi": int(share_quant_resi),
            "beta": float(beta),
            "blocks": int(blocks),
        }
        self.scales, self.vocab_size, self.code_dim = tuple(scales), int(vocab_size), int(code_dim)
        self.image_size = self.scales[-1] * 2 ** (len(channel_multipliers) - 1)
        self.encoder = Encoder(channels, channel_multipliers, code_dim, blocks)
        self.decoder = Decoder(channels, channel_multipliers, code_dim, blocks)
        self.quantize = Quantizer(vocab_size, code_dim, self.scales, quant_resi, share_quant_resi, beta)
        self.quant_conv = nn.Conv2d(code_dim, code_dim, 3, padding=1)
        self.post_quant_conv = nn.Conv2d(code_dim, code_dim, 3, padding=1)

    @property
    def codebook_VC(self) -> torch.Tensor:
        """The embedding of every code, (V, C)."""
        return self.quantize.embedding.weight

    def settings(self) -> dict[str, Any]:
        """The arguments that make this tokenizer again, as JSON holds them."""
        return dict(self._settings)

    @torch.no_grad()
    def encode(self, images_B3HW: torch.Tensor, with_teacher_input: bool = False):
        """Tokens of images in [-1, 1]: a list of (B, p_k²) int64, coarse to fine; float32 whatever the autocast.

        Args:
            with_teacher_input: also return `teacher_input` of these tokens, which the same pass makes.

        Raises:
            ConfigError: not (B, 3, S, S) of this tokenizer's image size, or pixels that are not finite.
        """
        self._check_images(images_B3HW)
        with torch.autocast(images_B3HW.device.type, enabled=False):
            features = self.quant_conv(in_parts(self.encoder, images_B3HW.float(), self.image_size))
            tokens, teacher_input = self.quantize.quantise(features)
        return (tokens, teacher_input) if with_teacher_input else tokens

    @torch.no_grad()
    def decode(self, tokens: Sequence[torch.Tensor]) -> torch.Tensor:
        """Images (B, 3, S, S), clamped to [-1, 1], of tokens as `encode` gives them.

        Raises:
            ConfigError: shapes that are not those of the scales, or a token outside 0 … V-1.
        """
        self.check_tokens(tokens)
        return self.decode_features(self.quantize.features(tokens))

    @torch.no_grad()
    def decode_features(self, features_BCHW: torch.Tensor) -> torch.Tensor:
        """Images, clamped to [-1, 1], of the features that tokens explain."""
        return in_parts(self.decoder, self.post_quant_conv(features_BCHW), self.image_size).clamp_(-1, 1)

    def teacher_input(self, tokens: Sequence[torch.Tensor]) -> torch.Tensor:
        """What the VAR sees at every scale but the first when these tokens are given: (B, L - p_1², C) float32.

        Raises:
            ConfigError: as `decode`; on a GPU the range is not looked at, which would stall every training step.
        """
        self.check_tokens(tokens, ranges=not tokens[0].is_cuda)
        return self.quantize.teacher_input(tokens)

    def forward(self, images_B3HW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """(reconstruction (B, 3, S, S) not clamped, vq_loss, tokens) for training; straight-through gradient."""
        features, vq_loss, tokens = self.quantize(self.quant_conv(self.encoder(images_B3HW)))
        return self.decoder(self.post_quant_conv(features)), vq_loss, tokens

    def check_tokens(self, tokens: Sequence[torch.Tensor], *, ranges: bool = True) -> None:
        """ConfigError unless ``tokens`` is a list of (B, p_k²) integers, and, if ``ranges``, each below V."""
        wanted = [p * p for p in self.scales]
        found = [tuple(part.shape) for part in tokens]
        if [shape[-1:] for shape in found] != [(n,) for n in wanted] or len({shape[:-1] for shape in found}) != 1:
            raise ConfigError(
                f"tokens of shapes {found} do not fit the scales {list(self.scales)}: a list of "
                f"(B, p²) tensors with p² = {wanted}",
                where="tokens",
            )
        for k, part in enumerate(tokens if ranges else ()):
            if part.numel() and not 0 <= int(part.min()) <= int(part.max()) < self.vocab_size:
                wrong = int(part.min()) if int(part.min()) < 0 else int(part.max())
                raise ConfigError(
                    f"token {wrong} at scale {k + 1} is outside the vocabulary 0 … {self.vocab_size - 1}",
                    where="tokens",
                )

    def _check_images(self, images_B3HW: torch.Tensor) -> None:
        shape, size = tuple(images_B3HW.shape), self.image_size
        if len(shape) != 4 or shape[1:] != (3, size, size):
            raise ConfigError(f"images of shape {shape}, this tokenizer takes (B, 3, {size}, {size})", where="images")
        if not torch.isfinite(images_B3HW).all():
            raise ConfigError("images hold pixels that are NaN or infinite", where="images")
