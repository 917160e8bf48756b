"""What is checked of a study before PyTorch and Ray are loaded, which takes seconds, let alone anything trained."""

from __future__ import annotations

import os
from pathlib import Path

from uvar_tune.config.paths import in_ray_job
from uvar_tune.config.schema import Config
from uvar_tune.errors import ConfigError, choose, nearest
from uvar_tune.io.outputs import check_directory
from uvar_tune.search.objectives import check_objective
from uvar_tune.study_dir import StudyDirectory

PHASES = ("calibrate", "noise", "explore", "refine", "inference", "confirm")
SEARCH, ALL = "search", "all"


def phases_of(phase: str | None) -> tuple[str, ...]:
    """The phases that a command runs; ConfigError for an unknown one."""
    if phase is None:
        return (SEARCH,)
    return PHASES if choose(phase, (*PHASES, ALL), "phase", "--phase") == ALL else (phase,)


def check_study(config: Config, steps: tuple[str, ...]) -> None:
    """What it selects on, how many replicates confirm, which feature network scores; ConfigError where one cannot be."""
    check_objective(config)
    if "confirm" in steps:
        from uvar_tune.analysis.confirmation import check_replicates

        check_replicates(config)
    check_weights(config)


def check_place(config: Config, files: StudyDirectory) -> None:
    """What stands in the way of a study where it would lie: nothing is made there, or only for the moment.

    Raises:
        ConfigError: the directory cannot be written, another study lies there, the storage cannot be opened.
    """
    for wanted in (files.directory / "trials", files.cache):
        check_directory(wanted, "run.root")
    files.require_same(config)
    if os.environ.get("UVAR_STORAGE") or config.run.storage:
        from uvar_tune.search.storage import check_storage

        check_storage(files.storage_url(config))


def check_folder(config: Config) -> None:
    """The folder of images and its classes, as far as the names of directories tell; on a cluster it is the workers' affair.

    Raises:
        ConfigError: one is not there.
    """
    if config.data.name != "folder" or os.environ.get("RAY_ADDRESS") or in_ray_job():
        return
    root = Path(config.data.path)
    for needed in (root, root / "train", root / "val"):
        if not needed.is_dir():
            raise ConfigError(
                f"{needed} is no directory; images lie in {root}/train|val/CLASS/IMAGE", where="data.path"
            )
    names = sorted(entry.name for entry in (root / "train").iterdir() if entry.is_dir())
    if not names:
        raise ConfigError(f"{root / 'train'} holds no directory, and each class is one", where="data.path")
    for name in config.data.classes or ():
        if name not in names:
            raise ConfigError(
                f"class {name!r} is not in {root / 'train'}", where="data.classes", nearest=nearest(name, names)
            )


def check_weights(config: Config) -> None:
    """What can be said of the feature network without loading it.

    Raises:
        ConfigError: its weights are not there.
    """
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
