"""Section ``tokenizer``: the multi-scale VQ-VAE."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from uvar_tune.config.sections.base import Positive, PositiveFloat, Section, Size, not_a_multiple


class TokenizerConfig(Section):
    """The multi-scale VQ-VAE: a given one, or the settings of stage 1, which trains it."""

    path: str | None = None
    """A trained or official VQ-VAE; without it, stage 1 trains one from the images."""
    vocab_size: Annotated[int, Field(ge=2, le=65536)] = 128
    """Number of codes V."""
    code_dim: Size = 16
    """Dimension of a code."""
    channels: Size = 32
    """Base width of encoder and decoder."""
    channel_multipliers: tuple[Size, ...] = (1, 2, 4)
    """Width multiplier of each resolution; each but the first halves the resolution."""
    scales: tuple[Size, ...] = (1, 2, 3, 4)
    """Side of the token map of each scale."""
    quant_resi: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Ratio of the residual convolution of the quantizer."""
    share_quant_resi: Annotated[int, Field(ge=0, le=256)] = 4
    """Residual convolutions of the quantizer, spread over the scales; 0: one per scale, 1: one for all."""
    beta: PositiveFloat = 0.25
    """Weight of the commitment loss (β)."""
    images: Positive = 32_000
    """Training images."""
    batch_size: Positive = 64
    """Global batch size."""
    learning_rate: PositiveFloat = 2e-3
    """Learning rate of AdamW."""
    lpips_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of LPIPS in addition to the squared error; its weights must be available locally."""
    lpips_network: Literal["vgg", "alex", "squeeze"] = "vgg"
    """Network of LPIPS."""
    crops: Positive = 1
    """Crops per image in the token cache: 1 is the centre crop, more are random crops."""

    @model_validator(mode="after")
    def _scales_grow(self):
        if list(self.scales) != sorted(set(self.scales)):
            raise ValueError(f"tokenizer.scales {list(self.scales)} must grow strictly")
        if self.images % self.batch_size:
            raise ValueError(not_a_multiple("tokenizer.images", self.images, "tokenizer.batch_size", self.batch_size))
        return self
