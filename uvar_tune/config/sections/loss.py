"""Section ``loss``: L = L_CE + λ1·L_2nd + λ2·L_SE."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from uvar_tune.config.sections.base import REFERENCES, SHARE_BOUNDS, Fraction, Section


class LossConfig(Section):
    """The loss L = L_CE + λ1·L_2nd + λ2·L_SE (docs/method.md)."""

    lambda_1: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the second-order term L_2nd."""
    lambda_2: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Weight of the semantic entropy L_SE; from 1 on the minimiser is arbitrary (docs/method.md)."""
    lambda_unit: Literal["raw", "share"] = "raw"
    """Unit of λ1 and λ2: raw, or share of the cross-entropy's gradient at the logits, measured on the baseline."""
    reference: Literal[REFERENCES] = "normal"
    """Reference dispersion that L_2nd compares with."""
    dispersion: Literal["embedding", "probability"] = "embedding"
    """Dispersion of a token distribution: in code space, or of the probabilities."""
    discrepancy: Literal["wasserstein", "squared", "kl"] = "wasserstein"
    """Distance between dispersion and reference."""
    normalize: Literal["relative", "none"] = "relative"
    """relative: dispersions in units of the anchor, the dispersion of the code histogram; none: as they are."""
    kl_smoothing: Annotated[float, Field(ge=0)] = 1e-2
    """Fraction of the reference added to both dispersions in discrepancy kl."""
    neighbours: Annotated[float, Field(gt=1)] = 8.0
    """Perplexity of each code's kernel in reference semantic."""
    perplexity: Annotated[float, Field(gt=1)] = 2.0
    """Mean perplexity of the kernels in reference normal."""
    condition_on: Literal["scale", "class"] = "scale"
    """class: condition the histograms of reference dataset on the label, too."""
    distance: Literal["euclidean", "cosine"] = "euclidean"
    """Distance between codes in the kernels (Eq. 7)."""
    partition: Literal["kmeans", "agglomerative", "reconstruction"] = "kmeans"
    """Method that groups codes into semantic classes."""
    class_count: Annotated[int, Field(ge=2)] | None = None
    """Number of semantic classes (default: max(2, V/16))."""
    first_order: Literal["ce", "label_smoothing", "label_relaxation"] = "ce"
    """First-order loss."""
    epsilon: Fraction = 0.1
    """Smoothing of label_smoothing."""
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Relaxation of label_relaxation."""

    @model_validator(mode="after")
    def _means_something(self):
        pointless = (self.reference, self.dispersion, self.discrepancy) == ("uniform", "probability", "kl")
        if self.lambda_1 > 0 and pointless:
            raise ValueError(
                "loss: 'kl' with reference 'uniform' and dispersion 'probability' divides by a "
                "reference variance of 0; take 'wasserstein' or 'squared'"
            )
        low, high = SHARE_BOUNDS
        for name, value in (("lambda_1", self.lambda_1), ("lambda_2", self.lambda_2)):
            if self.lambda_unit == "share" and value and not low <= value <= high:
                raise ValueError(
                    f"loss.{name} {value:g} is a share of the gradient (loss.lambda_unit): 0, or "
                    f"from {low:g} to {high:g}"
                )
        return self

    @property
    def weights(self) -> tuple[float, float]:
        """λ1 and λ2."""
        return self.lambda_1, self.lambda_2

    def baseline(self) -> LossConfig:
        """The same loss without its terms: λ1 = λ2 = 0."""
        return self.model_copy(update={"lambda_1": 0.0, "lambda_2": 0.0, "lambda_unit": "raw"})
