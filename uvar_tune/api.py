"""The Python API: what the commands do, as functions.

They raise `UvarError`s; they never exit, print or configure the loggers of other packages. Progress is logged by the
logger ``uvar_tune`` at level INFO. They can be called in a notebook that has called ``ray.init`` itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uvar_tune.analysis.results import StudyResults, set_pipeline
from uvar_tune.config.loading import config_from_mapping, read_config
from uvar_tune.config.schema import Config
from uvar_tune.errors import ConfigError, choose
from uvar_tune.specs import StudyCallbacks

if TYPE_CHECKING:
    from uvar_tune.commands.final_run import FinalRunOutcome
    from uvar_tune.paper.tables import Table
    from uvar_tune.tracking import Tracker

__all__ = ["evaluate", "load_config", "load_study", "run_study", "train"]


def _open_pipeline(directory: Path, **options: Any):
    from uvar_tune.pipeline import VARPipeline

    return VARPipeline.from_checkpoint(directory, **options)


set_pipeline(_open_pipeline)


def load_config(source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> Config:
    """Load and validate a configuration.

    Args:
        source: YAML file (a space file or an export), or nested sections as plain data.
        overrides: ``section.key=value``, the value as YAML, e.g. ``study.trials=4``.

    Raises:
        ConfigError: the first invalid key or value, with the nearest valid one.
    """
    overrides = [overrides] if isinstance(overrides, str) else list(overrides)
    if not all(isinstance(text, str) for text in overrides):
        raise ConfigError("overrides are a list of texts 'section.key=value'", where="overrides")
    if isinstance(source, Mapping):
        return config_from_mapping(source, overrides)
    return read_config(source, overrides)


def run_study(
    config: Config,
    *,
    phase: str | None = None,
    callbacks: Sequence[StudyCallbacks] = (),
    tracker: Tracker | None = None,
) -> StudyResults:
    """Run what is missing of a study; the same call resumes it.

    Args:
        config: as `load_config` returns it.
        phase: calibrate, noise, explore, refine, inference, confirm or all; by default explore, then refine.
        callbacks: notified of trials, rungs and the end of the study.
        tracker: used instead of MLflow.

    Returns:
        The results so far. `StudyResults.best` is None if no trial has a score.

    Raises:
        ConfigError: invalid input, found before anything is trained.
        InfrastructureError: the disk, the storage or the cluster failed; the same call resumes.
        KeyboardInterrupt: Ctrl-C or SIGTERM; running trials have saved a checkpoint.
    """
    from uvar_tune.commands.callbacks import CallbackList
    from uvar_tune.commands.sweep import run_study as run

    combined = CallbackList(callbacks) if callbacks else None
    return run(config, phase=phase, callbacks=combined, tracker=tracker).results


def load_study(name: str, *, root: str | Path | None = None) -> StudyResults:
    """Read the results of a study, finished or not.

    Args:
        name: of the study.
        root: directory that holds it (default: ``run.root``'s default, ``runs``).

    Raises:
        ConfigError: there is no such study, with the nearest name; it has not begun; its storage cannot be opened.
    """
    from uvar_tune.search.load import load_results
    from uvar_tune.study_dir import StudyDirectory, resolve_root

    files = StudyDirectory(resolve_root(None if root is None else str(root)), name)
    return load_results(files.load_config(), files)


def train(
    config: Config | str | Path,
    *,
    name: str | None = None,
    overrides: Iterable[str] = (),
    replay: bool = False,
    tracker: Tracker | None = None,
) -> FinalRunOutcome:
    """Train and score one configuration as a final run; the same call resumes it.

    Args:
        config: a configuration without a search space, or the YAML file of an export.
        name: of the run (default: the name of the file, or of the study).
        overrides: ``section.key=value``, applied to a file.
        replay: repeat the exported trial with its seeds and compare the scores.
        tracker: used instead of MLflow.

    Raises:
        ConfigError: invalid input, found before anything is trained.
        InfrastructureError: the disk or the cluster failed; the same call resumes.
        KeyboardInterrupt: Ctrl-C or SIGTERM; a checkpoint was saved.
    """
    overrides = list(overrides)
    if isinstance(config, Config):
        if overrides:
            raise ConfigError("overrides apply to a file; use Config.with_values", where="overrides")
        loaded, label, where = config, config.study.name, "config"
    else:
        loaded, label, where = read_config(config, overrides), Path(config).stem, str(config)
    from uvar_tune.commands.checks import check_final_config

    check_final_config(loaded, replay=replay, where=where)

    from uvar_tune.commands.final_run import run_final

    return run_final(loaded, name or label, replay=replay, tracker=tracker)


def evaluate(
    checkpoint: str | Path,
    *,
    tables: str | Sequence[str] = "table2",
    baseline: str | Path | None = None,
    **options: Any,
) -> list[Table]:
    """Compute the paper's tables for a checkpoint, write them as JSON and Markdown, log them.

    Args:
        checkpoint: checkpoint directory, or that of a trial (its newest checkpoint).
        tables: table2, table3, table5, table7, calibration, several of these, or all.
        baseline: checkpoint to compare with.
        options: of `uvar-tune evaluate`, e.g. ``samples=5000, cfg_scale=1.5, device="cuda", log=False``.

    Raises:
        ConfigError: an unknown table, or something named that cannot be used or compared.
    """
    from uvar_tune.commands.evaluate import Request, run_evaluation
    from uvar_tune.paper.measurements import TABLES

    names = [tables] if isinstance(tables, str) else list(tables)
    for name in names:
        choose(name, (*TABLES, "all"), "table", "tables")
    request = Request(
        checkpoint=str(checkpoint),
        baseline=None if baseline is None else str(baseline),
        tables=list(TABLES) if "all" in names else names,
        **options,
    )
    return run_evaluation(request)
