"""Every setting with its default, validated: the one schema of space files, exports and final runs.

A dotted name (``loss.lambda_1``) is the key of a space entry, the Optuna parameter, the MLflow parameter and the
command-line override. Sections are frozen and reject unknown keys; `Config.with_values` returns a new object. The
docstring below a field is its description in ``model_fields``, from which a reference of all settings can be generated.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from uvar_tune.config.sections.base import (
    IMAGE_FORMATS,
    LAMBDAS,
    NAME_PATTERN,
    PRUNERS,
    REFERENCES,
    SAMPLERS,
    SAMPLING_BOUNDS,
    SEARCH_AXES,
    SHARE_BOUNDS,
    Section,
    not_a_multiple,
)
from uvar_tune.config.sections.data import DataConfig
from uvar_tune.config.sections.evaluation import EvaluationConfig
from uvar_tune.config.sections.inference import InferenceConfig
from uvar_tune.config.sections.loss import LossConfig
from uvar_tune.config.sections.model import ModelConfig
from uvar_tune.config.sections.run import RunConfig
from uvar_tune.config.sections.study import Constraint, StudyConfig
from uvar_tune.config.sections.tokenizer import TokenizerConfig
from uvar_tune.config.sections.training import TrainingConfig
from uvar_tune.config.space_entry import SpaceEntry
from uvar_tune.errors import ConfigError, nearest
from uvar_tune.io.uri import redact_url

__all__ = [
    "Config",
    "Constraint",
    "DataConfig",
    "EvaluationConfig",
    "IMAGE_FORMATS",
    "InferenceConfig",
    "LAMBDAS",
    "LossConfig",
    "ModelConfig",
    "NAME_PATTERN",
    "PRUNERS",
    "REFERENCES",
    "RunConfig",
    "SAMPLERS",
    "SAMPLING_BOUNDS",
    "SEARCH_AXES",
    "SHARE_BOUNDS",
    "Section",
    "StudyConfig",
    "TokenizerConfig",
    "TrainingConfig",
    "dotted_names",
]


class Config(Section):
    """The whole configuration of a study or a final run."""

    study: StudyConfig = StudyConfig()
    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    training: TrainingConfig = TrainingConfig()
    inference: InferenceConfig = InferenceConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    run: RunConfig = RunConfig()
    space: dict[str, SpaceEntry] = {}
    """Search space: dotted name → entry."""
    final: dict[str, Any] = {}
    """Settings of final runs that replace those of the study: dotted name → value."""
    verdict: Literal["unconfirmed", "better", "not distinguishable", "worse"] | None = None
    """Verdict of an export."""
    provenance: dict[str, Any] | None = None
    """Origin of an export: study, trial, seeds, scores, versions."""

    @model_validator(mode="after")
    def _workers_divide(self):
        training, run = self.training, self.run
        share = run.workers * training.accumulate
        if training.batch_size % share:
            raise ValueError(
                not_a_multiple("training.batch_size", training.batch_size, "run.workers·training.accumulate", share)
            )
        for key in ("log_images", "checkpoint_images"):
            value = getattr(run, key)
            if value is not None and value % training.batch_size:
                raise ValueError(not_a_multiple(f"run.{key}", value, "training.batch_size", training.batch_size))
        self._check_rungs()
        self._check_guidance()
        if self.tokenizer.path is None:
            reach = self.tokenizer.scales[-1] * 2 ** (len(self.tokenizer.channel_multipliers) - 1)
            if reach != self.data.image_size:
                raise ValueError(
                    f"data.image_size {self.data.image_size} differs from {reach}, the size that "
                    "tokenizer.scales and tokenizer.channel_multipliers make"
                )
        return self

    def _check_guidance(self) -> None:
        """Classifier-free guidance needs a network that was also trained without labels (Ho & Salimans 2022)."""
        if self.model.label_dropout > 0:
            return
        inference, study = self.inference, self.study
        guided = {
            "inference.search 'per_checkpoint' scores CFG scales": inference.searches_guidance,
            f"inference.cfg_scale {inference.cfg_scale:g} is above 0": inference.cfg_scale > 0,
            "study.confirm_axes holds cfg_scale": "cfg_scale" in study.confirm_axes,
        }
        if reason := next((reason for reason, holds in guided.items() if holds), None):
            raise ValueError(
                f"model.label_dropout 0 trains no unconditional predictions, which guidance needs, and {reason}; take "
                "model.label_dropout 0.1, or inference.search 'joint', inference.cfg_scale 0 and study.confirm_axes "
                "without cfg_scale"
            )

    def _check_rungs(self) -> None:
        study, training = self.study, self.training
        for rung in study.rungs:
            if rung % training.batch_size:
                raise ValueError(not_a_multiple("study.rungs", rung, "training.batch_size", training.batch_size))
            if rung >= training.images:
                raise ValueError(f"study.rungs {rung} must be below training.images {training.images}")
        if study.rungs and study.rung_samples > self.evaluation.samples:
            raise ValueError(
                f"study.rung_samples {study.rung_samples} exceeds evaluation.samples {self.evaluation.samples}"
            )
        if study.max_gpu_hours is not None and not self.run.gpus_per_worker:
            raise ValueError(
                "study.max_gpu_hours is a budget of GPUs, and run.gpus_per_worker is 0; take study.max_wall_time"
            )
        lengths = [*study.rungs, training.images]
        ratios = {later / earlier for earlier, later in zip(lengths, lengths[1:], strict=False)}
        if study.pruner == "successive_halving" and (len(ratios) > 1 or min(ratios) < 2 or min(ratios) % 1):
            raise ValueError(
                f"study.rungs {list(study.rungs)} and training.images {training.images}: successive halving "
                "needs each to be the same whole multiple (2, 3, …) of the one before"
            )

    def get(self, dotted: str) -> Any:
        """The value at a dotted name, e.g. ``loss.lambda_1``."""
        section, key = dotted.split(".", 1)
        return getattr(getattr(self, section), key)

    def with_values(self, values: dict[str, Any]) -> Config:
        """A new, validated Config with the values of these dotted names replaced.

        Raises:
            ConfigError: the first unknown name or invalid value.
        """
        tree = self.model_dump()
        for dotted, value in values.items():
            section, _, key = dotted.partition(".")
            if key not in tree.get(section, {}):
                raise ConfigError(f"unknown setting {dotted!r}", nearest=nearest(dotted, dotted_names()))
            tree[section][key] = value
        return Config(**tree)

    def tree(self, *, exclude: tuple[str, ...] = ()) -> dict[str, Any]:
        """Plain lists, numbers and strings for YAML and JSON, without credentials of storage URLs.

        Args:
            exclude: sections to leave out.
        """
        tree = self.model_dump(mode="json", exclude=set(exclude))
        if self.run.storage and "run" in tree:
            tree["run"]["storage"] = redact_url(self.run.storage)
        if self.study.warm_start and "study" in tree:
            tree["study"]["warm_start"] = redact_url(self.study.warm_start)
        return tree


def dotted_names() -> list[str]:
    """The dotted names of all settings."""
    sections = {name: field.annotation for name, field in Config.model_fields.items()}
    return [
        f"{name}.{key}"
        for name, kind in sections.items()
        if isinstance(kind, type) and issubclass(kind, Section)
        for key in kind.model_fields
    ]
