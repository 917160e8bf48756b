"""The end of a study: table, export, report, costs, and where to look next."""

from __future__ import annotations

import json
import logging
import shlex
import time
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from uvar_tune.analysis.export import UNCONFIRMED, export_trial
from uvar_tune.analysis.results import StudyResults
from uvar_tune.config.schema import Config
from uvar_tune.errors import FAILED
from uvar_tune.io.uri import redact_url
from uvar_tune.reporting import ranked_table, write_report
from uvar_tune.reporting.costs import costs
from uvar_tune.search.load import load_results
from uvar_tune.study_dir import StudyDirectory
from uvar_tune.tracking import MLflowTracker, RunLogger
from uvar_tune.training import latest_valid

logger = logging.getLogger(__name__)


def finish(config: Config, files: StudyDirectory, sink: MLflowTracker | None, cpu_sec: dict[str, float]) -> int:
    """Print and write what the study found. Exit code 1 where no trial has a score."""
    results = load_results(config, files)
    Console(width=None if Console().is_terminal else 140).print(ranked_table(results))
    if results.best is None:
        logger.info("no trial has a score")
        if sink:
            sink.finish_study("FAILED")
        return FAILED
    run_id = sink.run_id(results.best.number) if sink else None
    export = export_trial(results, results.best, files.export, mlflow_run=run_id, unconfirmed=True)
    _note_costs(files, cpu_sec)
    pages = write_report(results, files.report)
    if sink:
        track(results, sink, [export, *map(Path, pages.values())])
    _log_costs(results, cpu_sec)
    best, verdict = results.best, results.verdict(results.best)
    word = verdict["verdict"] if verdict else UNCONFIRMED
    logger.info(f"best: trial {best.number}, {results.metric} {best.value:.4g}, exported to {export} (verdict: {word})")
    logger.info(f"report: {pages['html']}\npicture: {pages['png']}")
    uri = files.tracking_uri()
    local = uri.startswith("sqlite") and f"{_python()} -m mlflow ui --backend-store-uri {shlex.quote(uri)}"
    logger.info(f"MLflow UI:        {local or redact_url(uri)}")
    storage = redact_url(files.storage_url(config).removeprefix("journal:"))
    logger.info(f"Optuna dashboard: {Path(_python()).parent / 'optuna-dashboard'} {shlex.quote(storage)}")
    logger.info(f"final run:        {_python()} -m uvar_tune train {export}")
    return 0


def track(results: StudyResults, run_logger: RunLogger, pages: Iterable[Path], timestamp: float | None = None) -> None:
    """Log the results of a study: the best trial's checkpoint and scores, exports and reports."""
    best = results.best
    checkpoint = latest_valid(best.directory / "checkpoints", on_skip=lambda path, why: None)
    if checkpoint is not None:
        run_logger.log_artifact(best.number, checkpoint, "checkpoint")
    for path in pages:
        run_logger.log_artifact(None, path, "report")
    run_logger.log_study_metrics({f"best/{name}": value for name, value in best.scores.items()})
    run_logger.finish_study("FINISHED", timestamp=timestamp)


def _note_costs(files: StudyDirectory, cpu_sec: dict[str, float]) -> None:
    """One line for each driver that worked at the study."""
    if cpu_sec:
        with (files.directory / "cost.jsonl").open("a") as handle:
            handle.write(json.dumps({"time": time.time(), **cpu_sec}) + "\n")


def _log_costs(results: StudyResults, cpu_sec: dict[str, float]) -> None:
    """Where the time went, over all commands that worked at the study."""
    for row in costs(results):
        parts = [
            f"{seconds:,.0f} {kind} s" for seconds, kind in ((row.wall_sec, "wall"), (row.cpu_sec, "CPU")) if seconds
        ]
        if parts:
            logger.info(f"time, {row.phase}: {', '.join(parts)}")
    for name, seconds in cpu_sec.items():
        logger.info(f"CPU seconds of this command, {name}: {seconds:.0f} ({seconds / 60:.1f} minutes)")


def _python() -> str:
    import os
    import sys

    try:
        return str(Path(sys.executable).relative_to(os.getcwd()))
    except ValueError:
        return sys.executable
