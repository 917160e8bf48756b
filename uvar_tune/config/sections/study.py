"""Section ``study``: what is searched, how long, and what decides."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from uvar_tune.config.sections.base import (
    NAME_PATTERN,
    PRUNERS,
    SAMPLERS,
    SEARCH_AXES,
    Positive,
    PositiveFloat,
    Section,
    Seed,
)


class Constraint(Section):
    """A bound on one score of a trial. Trials beyond it are infeasible to the sampler and marked in the report."""

    max: float | None = None
    """Upper bound."""
    min: float | None = None
    """Lower bound."""
    max_above_baseline: float | None = None
    """Upper bound on the difference to the baseline, in the unit of the metric."""
    max_below_baseline: float | None = None
    """Upper bound on how far the score may fall below the baseline, in the unit of the metric."""

    @model_validator(mode="after")
    def _bounds_something(self):
        if all(bound is None for bound in (self.max, self.min, self.max_above_baseline, self.max_below_baseline)):
            raise ValueError("a constraint needs max, min, max_above_baseline or max_below_baseline")
        return self

    @property
    def relative(self) -> bool:
        """Whether the bound depends on the baseline's score."""
        return self.max_above_baseline is not None or self.max_below_baseline is not None


class StudyConfig(Section):
    """The question, the metric, the budget and the sampler of a study."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)] = "study"
    """Name of the study, unique below ``run.root``; the same name resumes it."""
    question: str = ""
    """The question that the study answers, for the report."""
    seed: Seed = 0
    """Seed from which all others are derived."""
    metric: str = "fid"
    """Metric that ranks the trials and selects the CFG scale of each checkpoint."""
    further_metrics: tuple[str, ...] = ()
    """Further metrics to optimise; with them the search is for the Pareto front."""
    constraints: dict[str, Constraint] = {}
    """Bounds on scores, by metric."""
    trials: Annotated[int, Field(gt=0, le=10**6)] = 8
    """Total number of trials, including the baseline (trial 0)."""
    sampler: Literal[SAMPLERS] = "tpe"
    """Sampler of the search after the start-up trials."""
    startup_trials: Positive = 8
    """Scrambled Sobol points before the sampler takes over."""
    pruner: Literal[PRUNERS] = "none"
    """Rule that stops trials early, at the rungs."""
    rungs: tuple[Positive, ...] = ()
    """Training images at which a trial is scored and may be stopped."""
    rung_samples: Annotated[int, Field(ge=16)] = 500
    """Generated images of a score at a rung."""
    rung_metric: str | None = None
    """Metric scored at the rungs (default: ``study.metric``); required with ``study.further_metrics``."""
    noise_replicates: Annotated[int, Field(ge=2)] = 4
    """Training seeds of the baseline in phase noise."""
    noise_samplings: Annotated[int, Field(ge=2)] = 3
    """Sampling seeds on which each of them is scored."""
    confirm_top: Positive = 2
    """Number of trials to confirm."""
    confirm_replicates: Positive = 12
    """Maximum number of fresh training seeds of each arm in the phase `confirm`; arms stop earlier if they can."""
    confirm_axes: tuple[Literal[SEARCH_AXES], ...] = ("cfg_scale", "temperature")
    """Inference parameters at whose best point each arm is compared."""
    confirm_refinements: Annotated[int, Field(ge=0, le=32)] = 8
    """Golden-section scores per arm in phase confirm."""
    max_gpu_hours: PositiveFloat | None = None
    """GPU hours after which no further trial starts."""
    max_wall_time: PositiveFloat | None = None
    """Hours with running trials after which no further trial starts."""
    queue: tuple[dict[str, Any], ...] = ()
    """Parameters of trials to run before the sampler's; parameters that they leave out are sampled."""
    warm_start: str | None = None
    """A study below the same root, or STORAGE_URL#NAME, whose completed trials inform the sampler."""

    @model_validator(mode="after")
    def _consistent(self):
        if len(set(self.metrics)) < len(self.metrics):
            raise ValueError(
                f"study.further_metrics {list(self.further_metrics)} and study.metric "
                f"{self.metric!r} name a metric twice"
            )
        if (self.pruner == "none") != (not self.rungs):
            raise ValueError("study.pruner and study.rungs belong together: give both, or pruner 'none' and no rungs")
        if list(self.rungs) != sorted(set(self.rungs)):
            raise ValueError(f"study.rungs {list(self.rungs)} must grow strictly")
        if self.rung_metric is not None and self.rung_metric not in self.metrics:
            raise ValueError(f"study.rung_metric {self.rung_metric!r} is none of the metrics {list(self.metrics)}")
        if self.pruner != "none" and self.further_metrics and self.rung_metric is None:
            raise ValueError(
                f"study.pruner {self.pruner!r} with several metrics needs study.rung_metric, one of "
                f"{list(self.metrics)}"
            )
        return self

    @property
    def metrics(self) -> tuple[str, ...]:
        """All metrics to optimise, ``study.metric`` first."""
        return (self.metric, *self.further_metrics)

    @property
    def pruning_metric(self) -> str:
        """The metric that is scored at the rungs."""
        return self.rung_metric or self.metric
