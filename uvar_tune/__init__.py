"""Distributed hyperparameter studies for visual autoregressive models trained with uncertainty preservation.

The names below are the public API. They are imported on first use (PEP 562), so that ``import uvar_tune`` is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_MODULES = {
    "uvar_tune.api": ("evaluate", "load_config", "load_study", "run_study", "train"),
    "uvar_tune.pipeline": ("VARPipeline",),
    "uvar_tune.analysis.results": ("StudyResults", "TrialResult"),
    "uvar_tune.specs": ("StudyCallbacks",),
    "uvar_tune.tracking": ("MLflowTracker", "NullTracker", "Tracker"),
    "uvar_tune.objective": ("CompositeLoss", "build_classes", "build_reference", "composite_loss"),
    "uvar_tune.config.schema": ("Config", "LossConfig"),
    "uvar_tune.errors": ("ConfigError", "Diverged", "InfrastructureError", "OutOfMemory", "StepFailed", "UvarError"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "CompositeLoss",
    "Config",
    "ConfigError",
    "Diverged",
    "InfrastructureError",
    "LossConfig",
    "MLflowTracker",
    "NullTracker",
    "OutOfMemory",
    "StepFailed",
    "StudyCallbacks",
    "StudyResults",
    "Tracker",
    "TrialResult",
    "UvarError",
    "VARPipeline",
    "build_classes",
    "build_reference",
    "composite_loss",
    "evaluate",
    "load_config",
    "load_study",
    "run_study",
    "train",
]

if TYPE_CHECKING:
    from uvar_tune.analysis.results import StudyResults, TrialResult
    from uvar_tune.api import evaluate, load_config, load_study, run_study, train
    from uvar_tune.config.schema import Config, LossConfig
    from uvar_tune.errors import (
        ConfigError,
        Diverged,
        InfrastructureError,
        OutOfMemory,
        StepFailed,
        UvarError,
    )
    from uvar_tune.objective import CompositeLoss, build_classes, build_reference, composite_loss
    from uvar_tune.pipeline import VARPipeline
    from uvar_tune.specs import StudyCallbacks
    from uvar_tune.tracking import MLflowTracker, NullTracker, Tracker


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'uvar_tune' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(module), name)
    return value


def __dir__() -> list[str]:
    """The public names, whether imported yet or not."""
    return sorted({*globals(), *__all__})
