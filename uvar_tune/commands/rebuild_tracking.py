"""Rebuild the MLflow view of a study for a server that has none of it.

The outbox holds every operation, in order; they are sent again unchanged. Trials that it lacks (``NAME/mlflow/`` may
have been deleted) are restored from the Optuna storage, the metrics logs and the outcome files, with their times.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uvar_tune.commands.summary import log_summary
from uvar_tune.config.loading import validate
from uvar_tune.config.schema import Config
from uvar_tune.errors import ConfigError
from uvar_tune.io.safe_load import parse_yaml, read_text
from uvar_tune.search.load import load_results
from uvar_tune.search.objectives import directions
from uvar_tune.search.storage import is_study_directory, require_existing_study, trials_by_phase
from uvar_tune.specs import OutcomeKind
from uvar_tune.study_dir import StudyDirectory
from uvar_tune.tracking import BufferedRunLogger, Outbox
from uvar_tune.tracking.metrics_log import read_records
from uvar_tune.tracking.parameters import (
    datasets,
    effective_parameters,
    provenance_tags,
    run_parameters,
    saved_view,
    score_parameters,
    source_tags,
    study_parameters,
    study_tags,
)
from uvar_tune.tracking.presentation import SEARCH, phase_of, run_name
from uvar_tune.trial.outcome_file import read_outcome, stored_seeds

_NO_SCORES = {"scores": {}, "inference_parameters": {}, "protocol": {}, "effective_parameters": {}}


@dataclass(frozen=True)
class _StoredTrial:
    """One trial or replicate as storage and files have it.

    Attributes:
        key: trial number, or phase and number of a replicate.
        directory: the trial directory.
        status: status of its MLflow run; None while it is unfinished.
        values: searched values.
        tags: tags of its run.
        outcome: what its scoring reported.
        started: s since the epoch, if known.
        ended: s since the epoch, if known.
    """

    key: int | str
    directory: Path
    status: str | None
    values: dict[str, Any]
    tags: dict[str, str]
    outcome: dict[str, Any] = field(default_factory=dict)
    started: float | None = None
    ended: float | None = None


def rebuild_tracking(files: StudyDirectory) -> None:
    """Make the outbox hold the whole study, none of it delivered.

    Raises:
        ConfigError: no such study, or its outbox is being delivered or cannot be written.
    """
    outbox = Outbox(files.directory / "mlflow")
    operations, run_logger = outbox.operations(), BufferedRunLogger(outbox)
    if files.config.exists() or not operations:  # a tokenizer or an evaluation has an outbox only
        tracked = {str(operation.get("number")) for operation in operations if operation.get("op") == "start_trial"}
        _log_untracked(run_logger, files, tracked, with_study=not operations)
    if not outbox.acquire_lock():
        raise ConfigError(
            "another process is sending it to MLflow; try again when it has ended", where=str(outbox.directory)
        )
    try:
        outbox.replace_all([*run_logger.operations, *outbox.operations()])
    except OSError as error:
        raise ConfigError(f"{outbox.directory} cannot be written: {error.strerror}", where="--rebuild") from None
    finally:
        outbox.release_lock()


def _log_untracked(run_logger: BufferedRunLogger, files: StudyDirectory, tracked: set[str], with_study: bool) -> None:
    """Log the trials that are not tracked, and the study if there is one of them or ``with_study``."""
    config = files.load_config()
    by_phase = trials_by_phase(files.storage_url(config), files.name)
    is_final = not by_phase and not is_study_directory(files.directory) and (files.trial(0) / "config.yaml").exists()
    if not by_phase:
        require_existing_study(files.storage_url(config), files.name, files.directory)
    stored = [_final_run(config, files)] if is_final else _stored_trials(by_phase, files)
    trials = [trial for trial in stored if str(trial.key) not in tracked]
    if not trials and not with_study:
        return
    _log_study(run_logger, config, files, trials, is_final)
    for trial in trials:
        _log_trial(run_logger, config, trial)
    ended = max((trial.ended for trial in trials if trial.ended), default=None)
    if is_final:
        run_logger.finish_study(trials[0].status or "RUNNING", timestamp=ended)
        return
    results = load_results(config, files) if by_phase else None
    if results is not None and results.best is not None:
        pages = sorted([*files.export.glob("*.yaml"), *files.report.glob("*.*")])
        log_summary(results, run_logger, pages)
        run_logger.finish_study("FINISHED", timestamp=ended)


def _log_study(
    run_logger: BufferedRunLogger, config: Config, files: StudyDirectory, trials: list[_StoredTrial], is_final: bool
) -> None:
    records = read_records(files.directory / "prepare.jsonl")[0]
    started = min((trial.started for trial in trials if trial.started), default=None)
    if records:
        started = records[0]["time"]
    if is_final:
        run_logger.start_study({"verdict": config.verdict or "none"}, trials[0].tags, timestamp=started)
        return
    provenance = next((trial.outcome["provenance"] for trial in trials if trial.outcome.get("provenance")), {})
    tags = {**provenance_tags(provenance), **study_tags(files.name, config.study.question)}
    run_logger.start_study(study_parameters(config), tags, timestamp=started)
    run_logger.save_view(**saved_view(config, directions(config)[0]))
    run_logger.log_artifact(None, files.config, "")
    prepared = next((record for record in reversed(records) if record["kind"] == "prepared"), {})
    if hashes := provenance.get("data_sha256"):
        run_logger.log_datasets(datasets(config, hashes, prepared.get("images", {})))
    run_logger.log_study_metrics(
        {
            f"prepare/{key}": value
            for key, value in prepared.items()
            if isinstance(value, float) and key not in ("time", "attempt")
        }
    )


def _log_trial(run_logger: BufferedRunLogger, config: Config, trial: _StoredTrial) -> None:
    path, outcome = trial.directory / "config.yaml", trial.outcome
    own = (
        validate(parse_yaml(read_text(path), str(path)), str(path))
        if path.exists()
        else config.with_values(trial.values)
    )
    parameters = run_parameters(own.model_copy(update={"space": config.space}), trial.values)
    name, phase = None, None
    if "uvar.phase" in trial.tags:  # not a final run
        name, phase = run_name(trial.key, trial.tags["uvar.kind"], trial.values), phase_of(trial.key)
    run_logger.start_trial(
        trial.key, trial.directory, parameters, trial.tags, name=name, phase=phase, timestamp=trial.started
    )
    if trial.status == "FINISHED":
        params = {
            **outcome["inference_parameters"],
            **effective_parameters(outcome["effective_parameters"]),
            **score_parameters(outcome["protocol"], outcome["seeds"]),
        }
        run_logger.finish_trial(trial.key, "FINISHED", outcome["scores"], params, timestamp=trial.ended)
    elif trial.status:
        run_logger.finish_trial(trial.key, trial.status, timestamp=trial.ended)


def _stored_trials(by_phase: dict[str, list], files: StudyDirectory) -> Iterator[_StoredTrial]:
    """The trials of the search and the replicates of its phases."""
    for phase, trials in by_phase.items():
        for trial in trials:
            outcome = {**_NO_SCORES, **trial.user_attrs}
            stopped = outcome.get("outcome") == "stopped"
            statuses = {"COMPLETE": "FINISHED", "PRUNED": "KILLED" if stopped else "FAILED", "FAIL": "FAILED"}
            directory = files.directory / (phase or "trials") / f"{trial.number:05d}"
            tags = {
                "uvar.kind": outcome["kind"],
                "uvar.phase": phase or SEARCH,
                "uvar.attempt": str(len(outcome["attempts"])),
                **source_tags(outcome.get("provenance") or {}),
            }
            yield _StoredTrial(
                f"{phase}/{trial.number}" if phase else trial.number,
                directory,
                statuses.get(trial.state.name),
                outcome["values"],
                tags,
                outcome,
                *_span(directory / "metrics.jsonl", outcome["attempts"]),
            )


def _final_run(config: Config, files: StudyDirectory) -> _StoredTrial:
    """The one trial of a final run or a replay."""
    directory, kind = files.trial(0), "replay" if files.name.endswith("-replay") else "final"
    seeds = stored_seeds(directory)
    outcome = read_outcome(directory, seeds)
    status = None if outcome is None else "FINISHED" if outcome.kind is OutcomeKind.COMPLETE else "FAILED"
    values = {"verdict": config.verdict or "none"}
    tags, details = {"uvar.kind": kind}, {**_NO_SCORES, **(outcome.attributes() if outcome else {}), "seeds": seeds}
    return _StoredTrial(0, directory, status, values, tags, details, *_span(directory / "metrics.jsonl", []))


def _span(metrics_log: Path, attempts: list[dict[str, Any]]) -> tuple[float | None, float | None]:
    """Start and end of a trial: first and last line of its log, else of its first and last attempt."""
    records = read_records(metrics_log)[0]
    if records:
        return records[0]["time"], records[-1]["time"]
    return (attempts[0].get("started"), attempts[-1].get("ended")) if attempts else (None, None)
