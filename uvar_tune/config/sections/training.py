"""Section ``training``: optimiser, schedule, batch and compute."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from uvar_tune.config.sections.base import Fraction, Positive, PositiveFloat, Section, not_a_multiple


class TrainingConfig(Section):
    """Training of the VAR (stage 2)."""

    images: Positive = 32_000
    """Training images."""
    batch_size: Positive = 64
    """Global batch size, over all workers."""
    learning_rate: PositiveFloat = 2e-3
    """Peak learning rate, absolute."""
    schedule: Literal["lin0", "lin", "lin00", "cos", "exp"] = "lin0"
    """Learning-rate schedule after the warm-up."""
    warmup_images: Annotated[int, Field(ge=0)] = 640
    """Images of linear warm-up."""
    final_ratio: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Ratio of the final to the peak learning rate."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """Weight decay of AdamW."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    """Betas of AdamW."""
    clip: PositiveFloat | None = 2.0
    """Norm to which gradients are clipped; null: no clipping."""
    accumulate: Positive = 1
    """Gradient accumulation steps."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on a GPU, fp32 on a CPU."""
    ema: Positive | None = None
    """Half-life in images of averaged weights, which are then scored; null: none."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    compile: bool = False
    """Compile the transformer blocks for training (`torch.compile`); scoring is not compiled."""
    fused: Literal["auto", "on", "off"] = "auto"
    """Compute the loss directly from the hidden states, without holding all logits."""
    init_from: str | None = None
    """Checkpoint or official VAR file from which training starts."""

    @model_validator(mode="after")
    def _batches_divide(self):
        if self.images % self.batch_size:
            raise ValueError(not_a_multiple("training.images", self.images, "training.batch_size", self.batch_size))
        if self.batch_size % self.accumulate:
            raise ValueError(
                not_a_multiple("training.batch_size", self.batch_size, "training.accumulate", self.accumulate)
            )
        if self.warmup_images >= self.images:
            raise ValueError(f"training.warmup_images {self.warmup_images} must be below training.images {self.images}")
        return self
