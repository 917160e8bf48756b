"""Section ``evaluation``: samples and metrics."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from uvar_tune.config.sections.base import Positive, Section
from uvar_tune.metrics import OBJECTIVE, names_for


class EvaluationConfig(Section):
    """Scoring."""

    samples: Annotated[int, Field(ge=16)] = 1000
    """Generated images of a score."""
    chunk: Positive = 100
    """Images sampled at once."""
    extractor: str = "inception-v3-compat"
    """Feature network."""
    weights: str | None = None
    """File with the feature network's weights (default: its own download or training)."""
    metrics: tuple[Literal[names_for(OBJECTIVE)], ...] = names_for(OBJECTIVE)
    """Metrics to compute."""
    reference_split: Literal["train", "validation"] = "train"
    """Images to compare with."""
