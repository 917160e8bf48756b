"""Section ``inference``: CFG scale, temperature, and how they are searched."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from uvar_tune.config.sections.base import SEARCH_AXES, CfgRamp, CfgScale, Section, Temperature


class InferenceConfig(Section):
    """Sampling, and the search for the inference point of a checkpoint."""

    search: Literal["per_checkpoint", "joint"] = "per_checkpoint"
    """per_checkpoint: search the inference point of each checkpoint; joint: as parameters of the trial."""
    cfg_scale: CfgScale = 1.5
    """Guidance at the last scale; 0: off."""
    search_cfg_scales: tuple[CfgScale, ...] = (0.0, 0.5, 1.0, 2.0, 4.0)
    """CFG scales at which each checkpoint is scored."""
    search_axes: tuple[Literal[SEARCH_AXES], ...] = ("cfg_scale",)
    """Parameters that are searched for each checkpoint, in addition to those of role inference in the space."""
    search_refinements: Annotated[int, Field(ge=0, le=16)] = 2
    """Golden-section scores around the best of these."""
    temperature: Temperature = 1.0
    """Divisor of the logits."""
    cfg_ramp: CfgRamp = 1.0
    """Exponent with which guidance grows over the scales; 0: the same at each scale."""
    top_k: Annotated[int, Field(ge=0, le=2**16)] = 0
    """Sample from the k most probable codes; 0: off."""
    top_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Sample from the most probable codes of mass p; 0: off."""

    @property
    def searches_guidance(self) -> bool:
        """Whether each checkpoint is scored at several CFG scales."""
        return self.search == "per_checkpoint" and "cfg_scale" in self.search_axes

    @model_validator(mode="after")
    def _profile_holds_zero(self):
        points = self.search_cfg_scales
        if 0.0 not in points or len(points) < 2 or list(points) != sorted(set(points)):
            raise ValueError(
                f"inference.search_cfg_scales {list(points)} must ascend and hold 0 (guidance off) and one more"
            )
        return self
