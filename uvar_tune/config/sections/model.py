"""Section ``model``: the size of the VAR."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from uvar_tune.config.sections.base import Fraction, Section, Size


class ModelConfig(Section):
    """The VAR transformer."""

    depth: Annotated[int, Field(gt=0, le=256)] = 2
    """Number of blocks."""
    width: Size | None = None
    """Embedding dimension (default: 64·depth)."""
    heads: Size | None = None
    """Attention heads (default: depth)."""
    shared_aln: bool = False
    """Share the adaptive layer norm over all blocks."""
    attn_l2_norm: bool = True
    """Normalise queries and keys."""
    label_dropout: Fraction = 0.1
    """Probability of an unconditional training label, for classifier-free guidance."""
    drop_path: Fraction | None = None
    """Stochastic depth (default: 0.1·depth/24)."""

    @model_validator(mode="after")
    def _heads_divide(self):
        width, heads = self.width or 64 * self.depth, self.heads or self.depth
        if width % heads:
            raise ValueError(f"model.width {width} is not a multiple of model.heads {heads}")
        return self

    def resolved(self) -> ModelConfig:
        """This section with the official values in place of None."""
        return self.model_copy(
            update={
                "width": self.width or 64 * self.depth,
                "heads": self.heads or self.depth,
                "drop_path": 0.1 * self.depth / 24 if self.drop_path is None else self.drop_path,
            }
        )
