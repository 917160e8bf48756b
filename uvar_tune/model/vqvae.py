"""The tokenizer: images to tokens of K scales and back. Its state dict has the names of the official VAR release.

Legend: B batch, K scales, p_k the side of scale k, L = Σ p_k², C code dimension, V codes, S image size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from uvar_tune.config.schema import TokenizerConfig
from uvar_tune.errors import ConfigError
from uvar_tune.model.autoencoder import Decoder, Encoder, in_chunks
from uvar_tune.model.quantizer import Quantizer

ARCHITECTURE = (
    "vocab_size",
    "code_dim",
    "channels",
    "scales",
    "channel_multipliers",
    "quant_resi",
    "share_quant_resi",
    "beta",
)  # settings of `tokenizer` that decide what the network is; the rest decide its training
OFFICIAL_BLOCKS = 2


class VQVAE(nn.Module):
    """Multi-scale VQ-VAE.

    Args:
        config: of its fields those of `ARCHITECTURE` are used.
        blocks: residual blocks per level of the encoder; the decoder has one more.
    """

    def __init__(self, config: TokenizerConfig, *, blocks: int = OFFICIAL_BLOCKS):
        super().__init__()
        self.config, self.blocks = config, int(blocks)
        self.scales, self.vocab_size, self.code_dim = config.scales, config.vocab_size, config.code_dim
        self.image_size = self.scales[-1] * 2 ** (len(config.channel_multipliers) - 1)
        self.encoder = Encoder(config.channels, config.channel_multipliers, config.code_dim, self.blocks)
        self.decoder = Decoder(config.channels, config.channel_multipliers, config.code_dim, self.blocks)
        self.quantize = Quantizer(
            config.vocab_size, config.code_dim, config.scales, config.quant_resi, config.share_quant_resi, config.beta
        )
        self.quant_conv = nn.Conv2d(config.code_dim, config.code_dim, 3, padding=1)
        self.post_quant_conv = nn.Conv2d(config.code_dim, config.code_dim, 3, padding=1)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> VQVAE:
        """The network that `settings` describes.

        Raises:
            ValueError: a missing or unknown key, or a value that the schema does not allow.
        """
        if set(settings) != {*ARCHITECTURE, "blocks"}:
            raise ValueError(f"its keys are {sorted(settings)}, expected {sorted([*ARCHITECTURE, 'blocks'])}")
        config = TokenizerConfig.model_validate({name: settings[name] for name in ARCHITECTURE})
        return cls(config, blocks=settings["blocks"])

    def settings(self) -> dict[str, Any]:
        """What `from_settings` takes, as plain JSON data."""
        settings = self.config.model_dump(mode="json", include=set(ARCHITECTURE))
        return {**{name: settings[name] for name in ARCHITECTURE}, "blocks": self.blocks}

    @property
    def codebook_VC(self) -> torch.Tensor:
        """The embedding of every code, (V, C)."""
        return self.quantize.embedding.weight

    @torch.no_grad()
    def encode(self, images_B3HW: torch.Tensor, with_teacher_input: bool = False):
        """Tokens of images in [-1, 1]: a list of (B, p_k²) int64, coarse to fine. Float32, also under autocast.

        Args:
            images_B3HW: of this tokenizer's image size.
            with_teacher_input: return (tokens, `teacher_input` of these tokens), made in the same pass.

        Raises:
            ConfigError: images of another shape, or pixels that are not finite.
        """
        self._check_images(images_B3HW)
        with torch.autocast(images_B3HW.device.type, enabled=False):
            features = self.quant_conv(in_chunks(self.encoder, images_B3HW.float(), self.image_size))
            tokens, teacher_input = self.quantize.encode(features)
        return (tokens, teacher_input) if with_teacher_input else tokens

    @torch.no_grad()
    def decode(self, tokens: Sequence[torch.Tensor]) -> torch.Tensor:
        """Images (B, 3, S, S), clamped to [-1, 1], of tokens as `encode` returns them.

        Raises:
            ConfigError: shapes other than those of the scales, or a token outside 0 … V-1.
        """
        self.check_tokens(tokens)
        return self.decode_features(self.quantize.features(tokens))

    @torch.no_grad()
    def decode_features(self, features_BCHW: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, S, S), clamped to [-1, 1], of accumulated features."""
        return in_chunks(self.decoder, self.post_quant_conv(features_BCHW), self.image_size).clamp_(-1, 1)

    def teacher_input(self, tokens: Sequence[torch.Tensor]) -> torch.Tensor:
        """Input of the VAR at every scale but the first, given these tokens: (B, L - p_1², C) float32.

        Raises:
            ConfigError: as `decode`; on a GPU the range is not checked, which would stall every training step.
        """
        self.check_tokens(tokens, ranges=not tokens[0].is_cuda)
        return self.quantize.teacher_input(tokens)

    def forward(self, images_B3HW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """Reconstruct for training, with straight-through gradient.

        Returns:
            Reconstruction (B, 3, S, S), not clamped; vq_loss; tokens as `encode`.
        """
        features, vq_loss, tokens = self.quantize(self.quant_conv(self.encoder(images_B3HW)))
        return self.decoder(self.post_quant_conv(features)), vq_loss, tokens

    def check_tokens(self, tokens: Sequence[torch.Tensor], *, ranges: bool = True) -> None:
        """Verify shapes, and with ``ranges`` values.

        Raises:
            ConfigError: not a list of (B, p_k²) integers, or one that is not below V.
        """
        lengths = [p * p for p in self.scales]
        shapes = [tuple(part.shape) for part in tokens]
        if [shape[-1:] for shape in shapes] != [(n,) for n in lengths] or len({shape[:-1] for shape in shapes}) != 1:
            raise ConfigError(
                f"tokens of shapes {shapes} do not fit the scales {list(self.scales)}: a list of "
                f"(B, p²) tensors with p² = {lengths}",
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
