"""What is checked of a study before PyTorch and Ray are loaded, which takes seconds, let alone anything trained."""

from __future__ import annotations

from uvar_tune.config import Config
from uvar_tune.errors import choose
from uvar_tune.study.objectives import check_objective

PHASES = ("calibrate", "noise", "explore", "refine", "profile", "confirm")
SEARCH, ALL = "search", "all"


def steps_of(phase: str | None) -> tuple[str, ...]:
    """The phases that a command runs; ConfigError for an unknown one."""
    if phase is None:
        return (SEARCH,)
    return PHASES if choose(phase, (*PHASES, ALL), "phase", "--phase") == ALL else (phase,)


def check_study(config: Config, steps: tuple[str, ...]) -> None:
    """What it selects on, how many replicates confirm, which feature network scores; ConfigError where one cannot be."""
    check_objective(config)
    if "confirm" in steps:
        from uvar_tune.study.confirm import check_replicates

        check_replicates(config)
    check_weights(config)


def check_weights(config: Config) -> None:
    """What can be said of the feature network without loading it.

    Raises:
        ConfigError: its weights are not there.
    """
    if config.evaluation.extractor != "digits" or config.evaluation.weights is not None:
        from uvar_tune.evaluation import check_extractor

        check_extractor(config.evaluation.extractor, config.evaluation.weights)
