"""Checks of a run that need neither PyTorch nor Ray, whose imports take seconds."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path

from uvar_tune.config.paths import in_ray_job
from uvar_tune.config.schema import NAME_PATTERN, Config
from uvar_tune.errors import ConfigError, choose, nearest
from uvar_tune.io.outputs import check_directory
from uvar_tune.metrics import FEATURE_WIDTHS
from uvar_tune.search.objectives import check_objective
from uvar_tune.specs import TrialOutcome
from uvar_tune.study_dir import StudyDirectory

logger = logging.getLogger(__name__)

PHASES = ("calibrate", "noise", "explore", "refine", "inference", "confirm")
SEARCH, ALL = "search", "all"


def phases_of(phase: str | None) -> tuple[str, ...]:
    """The phases that a command runs.

    Args:
        phase: one of `PHASES`, `all`, or None for the search (explore, then refine).

    Raises:
        ConfigError: an unknown phase.
    """
    if phase is None:
        return (SEARCH,)
    return PHASES if choose(phase, (*PHASES, ALL), "phase", "--phase") == ALL else (phase,)


def check_first_phase(phases: tuple[str, ...], study: str, any_finished: Callable[[], bool]) -> None:
    """Check that a phase after the search has finished trials to work on.

    Args:
        phases: to be run.
        study: name of the study.
        any_finished: whether a trial other than the baseline has a score; called only if it matters.

    Raises:
        ConfigError: the first phase needs one, and there is none.
    """
    if phases[0] in ("inference", "confirm") and not any_finished():
        raise ConfigError(
            f"study {study!r} has no finished trial to {phases[0]} yet",
            where=f"--phase {phases[0]}",
            nearest="--phase explore",
        )


def check_name(name: str) -> None:
    """Raise `ConfigError` if a final run or tokenizer cannot have this name."""
    if not re.match(NAME_PATTERN, name):
        raise ConfigError(f"{name!r} is no name (letters, digits, '.', '_', '-')", where="--name")


def check_study(config: Config, phases: tuple[str, ...]) -> None:
    """Check metric, queued trials, number of replicates, feature network and number of samples (the last with a
    warning).

    Raises:
        ConfigError: one of them is invalid.
    """
    check_objective(config)
    if config.study.queue:
        from uvar_tune.search.queue import check_queue  # imports Optuna

        check_queue(config)
    if "confirm" in phases:
        from uvar_tune.analysis.confirmation import check_replicates

        check_replicates(config)
    check_weights(config)
    if text := few_samples(config):
        logger.warning(f"warning: {text}")


def check_warm_start(config: Config) -> None:
    """Raise `ConfigError` if a new study cannot start from the trials of `study.warm_start`."""
    if config.study.warm_start is not None:
        from uvar_tune.search.warm_start import source_trials

        source_trials(config)


def few_samples(config: Config) -> str | None:
    """Why the FID of this configuration is biased; None if enough images are generated."""
    width = FEATURE_WIDTHS.get(config.evaluation.extractor, 0)
    counts = {"evaluation.samples": config.evaluation.samples}
    if config.study.rungs:
        counts["study.rung_samples"] = config.study.rung_samples
    small = [f"{name} {count:,}" for name, count in counts.items() if count <= width]
    if "fid" not in config.evaluation.metrics or not small:
        return None
    return (
        f"{' and '.join(small)}: FID needs more images than the {width:,} features of {config.evaluation.extractor!r}, "
        "else its covariance is singular and it is biased upwards"
    )


def check_study_directory(config: Config, files: StudyDirectory) -> None:
    """Check where the study is to be stored, without creating anything.

    Raises:
        ConfigError: the directory cannot be written, belongs to another study, or the storage cannot be opened.
    """
    for directory in (files.directory / "trials", files.cache):
        check_directory(directory, "run.root")
    files.verify_config(config)
    if os.environ.get("UVAR_STORAGE") or config.run.storage:
        from uvar_tune.search.storage import check_storage

        check_storage(files.storage_url(config))


def check_images(config: Config) -> None:
    """Check the names of image folders and classes. On a cluster only the workers need to have them.

    Raises:
        ConfigError: a directory or class is missing.
    """
    if config.data.name != "folder" or os.environ.get("RAY_ADDRESS") or in_ray_job():
        return
    root = Path(config.data.path)
    for directory in (root, root / "train", root / "val"):
        if not directory.is_dir():
            raise ConfigError(
                f"{directory} is not a directory; images are stored as {root}/train|val/CLASS/IMAGE", where="data.path"
            )
    names = sorted(entry.name for entry in (root / "train").iterdir() if entry.is_dir())
    if not names:
        raise ConfigError(f"{root / 'train'} has no subdirectory; each class is one", where="data.path")
    for name in config.data.classes or ():
        if name not in names:
            raise ConfigError(
                f"class {name!r} is not in {root / 'train'}", where="data.classes", nearest=nearest(name, names)
            )


def is_config_error(outcome: TrialOutcome) -> bool:
    """Whether a trial crashed because of its input, so that a retry is of no use."""
    return outcome.error_type in {error.__name__ for error in (ConfigError, *ConfigError.__subclasses__())}


def check_weights(config: Config) -> None:
    """Raise `ConfigError` if the weights of the feature network do not exist. They are not loaded."""
    if config.evaluation.extractor != "digits" or config.evaluation.weights is not None:
        from uvar_tune.evaluation import check_extractor

        check_extractor(config.evaluation.extractor, config.evaluation.weights)


def check_final_config(config: Config, *, replay: bool, where: str) -> None:
    """Check that a configuration can be a final run.

    Raises:
        ConfigError: it has a search space, or a replay of it has no seeds and scores to compare with.
    """
    if config.space:
        raise ConfigError("is a space file: run it with `uvar-tune sweep`, or export one of its trials", where=where)
    if replay and not (config.provenance or {}).get("seeds"):
        raise ConfigError("a replay needs an export, whose provenance holds seeds and scores", where=where)
