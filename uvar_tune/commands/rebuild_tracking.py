"""Everything of a study for an MLflow server that has none of it.

What was told lies in the outbox, in order, and is sent again as it was. Of trials that the outbox lacks (`NAME/mlflow/` may have
been deleted) storage, records and `outcome.json` tell what happened, at the times at which it happened.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uvar_tune.commands.summary import track
from uvar_tune.config.loading import validate
from uvar_tune.config.schema import Config
from uvar_tune.errors import ConfigError
from uvar_tune.io.safe_load import parse_yaml, read_text
from uvar_tune.search.load import load_results
from uvar_tune.search.storage import is_study_directory, require_existing_study, trials_by_phase
from uvar_tune.specs import OutcomeKind
from uvar_tune.study_dir import StudyDirectory
from uvar_tune.tracking import BufferedRunLogger, Outbox
from uvar_tune.tracking.metrics_log import read_records
from uvar_tune.tracking.parameters import origin_tags, run_parameters, scored_under, study_parameters, that_ran
from uvar_tune.trial.outcome_file import read_outcome, stored_seeds

_EMPTY = {"scores": {}, "inference_parameters": {}, "protocol": {}, "effective_parameters": {}}


@dataclass(frozen=True)
class _Trial:
    """One run of MLflow's as storage and files have it; ``status`` None while it is under way."""

    key: int | str
    directory: Path
    status: str | None
    values: dict[str, Any]
    tags: dict[str, str]
    about: dict[str, Any] = field(default_factory=dict)  # what its scorer told
    span: tuple[float | None, float | None] = (None, None)  # s since 1970


def rebuild_tracking(files: StudyDirectory) -> None:
    """Make the outbox hold the whole study, none of it delivered.

    Raises:
        ConfigError: no such study; its outbox is being delivered or cannot be written.
    """
    spool = Outbox(files.directory / "mlflow")
    kept, told = spool.operations(), BufferedRunLogger(spool)
    if files.config.exists() or not kept:  # a tokenizer or an evaluation has no study, only what it told
        known = {str(operation.get("number")) for operation in kept if operation.get("op") == "watch"}
        _tell(told, files.stored(), files, known, begins=not kept)
    if not spool.hold():
        raise ConfigError(
            "another process is sending it to MLflow; try again when it has ended", where=str(spool.directory)
        )
    try:
        spool.rewrite([*told.operations, *spool.operations()])
    except OSError as error:
        raise ConfigError(f"{spool.directory} cannot be written: {error.strerror}", where="--rebuild") from None
    finally:
        spool.release()


def _tell(told: BufferedRunLogger, config: Config, files: StudyDirectory, known: set[str], begins: bool) -> None:
    """Tell what is not ``known``; nothing where all is, unless the study has nothing of its own (``begins``)."""
    begun = trials_by_phase(files.storage_url(config), files.name)
    final = not begun and not is_study_directory(files.directory) and (files.trial(0) / "config.yaml").exists()
    if not begun:
        require_existing_study(files.storage_url(config), files.name, files.directory)
    trials = [
        trial for trial in ([_final(config, files)] if final else _trials(begun, files)) if str(trial.key) not in known
    ]
    if not trials and not begins:
        return
    _tell_study(told, config, files, trials, final)
    for trial in trials:
        _tell_trial(told, config, trial)
    last = max((trial.span[1] for trial in trials if trial.span[1]), default=None)
    if final:
        told.finish_study(trials[0].status or "RUNNING", at=last)
        return
    results = load_results(config, files) if begun else None
    if results is not None and results.best is not None:
        track(results, told, sorted([*files.export.glob("*.yaml"), *files.report.glob("*.*")]), at=last)


def _tell_study(
    told: BufferedRunLogger, config: Config, files: StudyDirectory, trials: list[_Trial], final: bool
) -> None:
    prepared = read_records(files.directory / "prepare.jsonl")[0]
    began = prepared[0]["time"] if prepared else min((trial.span[0] for trial in trials if trial.span[0]), default=None)
    if final:
        told.start_study({"verdict": config.verdict or "none"}, trials[0].tags, at=began)
        return
    made_by = next((trial.about["provenance"] for trial in trials if trial.about.get("provenance")), {})
    told.start_study(study_parameters(config), origin_tags(made_by), at=began)
    told.artifact(None, files.config, "")
    facts = next((record for record in reversed(prepared) if record["kind"] == "prepared"), {})
    told.study_metrics(
        {
            f"prepare/{key}": value
            for key, value in facts.items()
            if isinstance(value, float) and key not in ("time", "attempt")
        }
    )


def _tell_trial(told: BufferedRunLogger, config: Config, trial: _Trial) -> None:
    own, (first, last) = trial.directory / "config.yaml", trial.span
    ran = validate(parse_yaml(read_text(own), str(own)), str(own)) if own.exists() else config.with_values(trial.values)
    parameters = run_parameters(ran.model_copy(update={"space": config.space}), trial.values)
    told.watch_trial(trial.key, trial.directory, parameters, trial.tags, at=first)
    if trial.status == "FINISHED":
        about = {
            **that_ran(trial.about["effective_parameters"]),
            **scored_under(trial.about["protocol"], trial.about["seeds"]),
        }
        told.finish_trial(
            trial.key, "FINISHED", trial.about["scores"], {**trial.about["inference_parameters"], **about}, at=last
        )
    elif trial.status:
        told.finish_trial(trial.key, trial.status, at=last)


def _trials(begun: dict[str, list], files: StudyDirectory) -> Iterator[_Trial]:
    """The trials of the search and the replicates of its phases, as the storage has them."""
    for phase, trials in begun.items():
        for trial in trials:
            about = {**_EMPTY, **trial.user_attrs}
            status = {
                "COMPLETE": "FINISHED",
                "PRUNED": "KILLED" if about.get("outcome") == "stopped" else "FAILED",
                "FAIL": "FAILED",
            }.get(trial.state.name)
            directory = files.directory / (phase or "trials") / f"{trial.number:05d}"
            tags = {
                "uvar.kind": about["kind"],
                "uvar.phase": phase or "trial",
                "uvar.attempt": str(len(about["attempts"])),
            }
            yield _Trial(
                f"{phase}/{trial.number}" if phase else trial.number,
                directory,
                status,
                about["values"],
                tags,
                about,
                _span(directory / "metrics.jsonl", about["attempts"]),
            )


def _final(config: Config, files: StudyDirectory) -> _Trial:
    """The one trial of a final run or a replay, as its files have it."""
    directory, kind = files.trial(0), "replay" if files.name.endswith("-replay") else "final"
    seeds = stored_seeds(directory)
    outcome = read_outcome(directory, seeds)
    status = None if outcome is None else "FINISHED" if outcome.kind is OutcomeKind.COMPLETE else "FAILED"
    return _Trial(
        0,
        directory,
        status,
        {"verdict": config.verdict or "none"},
        {"uvar.kind": kind},
        {**_EMPTY, **(outcome.attributes() if outcome else {}), "seeds": seeds},
        _span(directory / "metrics.jsonl", []),
    )


def _span(record: Path, attempts: list[dict[str, Any]]) -> tuple[float | None, float | None]:
    """When it began and ended: its record's first and last line, else its first and last attempt."""
    lines = read_records(record)[0]
    if lines:
        return lines[0]["time"], lines[-1]["time"]
    return (attempts[0].get("started"), attempts[-1].get("ended")) if attempts else (None, None)
