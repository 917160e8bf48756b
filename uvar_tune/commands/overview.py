"""Overviews of stored studies: a summary of each study below a root, one study as data, one trial in detail."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from uvar_tune.analysis.results import StudyResults, TrialResult
from uvar_tune.errors import ConfigError, UvarError, nearest
from uvar_tune.io.locks import is_locked
from uvar_tune.search.load import load_results
from uvar_tune.search.storage import is_study_directory
from uvar_tune.study_dir import StudyDirectory

_FINISHED = ("COMPLETE", "PRUNED", "FAIL")


@dataclasses.dataclass(frozen=True)
class StudySummary:
    """One study below a root.

    Attributes:
        name: name of the study.
        state: running (a sweep holds its lock), complete, incomplete, empty (no trial yet) or unreadable.
        finished: trials that ended, with or without a score.
        trials: total number of trials (``study.trials``).
        metric: ``study.metric``.
        best: best value of the metric; None before the first score.
        best_trial: number of that trial.
        age_sec: seconds since the study was created.
        problem: why the study is unreadable.
    """

    name: str
    state: str
    finished: int
    trials: int
    metric: str
    best: float | None
    best_trial: int | None
    age_sec: float
    problem: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dataclasses.asdict(self)


def summarize_studies(root: Path) -> list[StudySummary]:
    """The studies below ``root``, the newest first. Final runs and tokenizers are not studies."""
    directories = [StudyDirectory(root, path.parent.name) for path in root.glob("*/study.yaml")]
    summaries = [_summarize(files) for files in directories if is_study_directory(files.directory)]
    return sorted(summaries, key=lambda summary: (summary.age_sec, summary.name))


def newest_study(root: Path) -> str:
    """Name of the newest study below ``root``; an unreadable one counts as well.

    Raises:
        ConfigError: there is none.
    """
    directories = [path.parent for path in root.glob("*/study.yaml") if is_study_directory(path.parent)]
    if not directories:
        raise ConfigError(f"no studies below {root}", where="--root")
    return max(directories, key=lambda path: ((path / ".identity").stat().st_mtime, path.name)).name


def describe_study(results: StudyResults) -> dict[str, Any]:
    """The ranked trials as plain data, those without a score last."""
    ranked = results.ranked()
    numbers = {trial.number for trial in ranked}
    rest = [trial for trial in results.trials if trial.number not in numbers]
    return {
        "study": results.name,
        "metric": results.metric,
        "direction": results.direction,
        "trials": [
            {"rank": rank, **describe_trial(results, trial.number)}
            for rank, trial in [*enumerate(ranked, 1), *((None, trial) for trial in rest)]
        ],
    }


def describe_trial(results: StudyResults, number: int) -> dict[str, Any]:
    """Settings, scores, attempts and files of one trial as plain data.

    Raises:
        ConfigError: the study has no such trial.
    """
    trial = _find_trial(results, number)
    verdict = results.verdict(trial)
    return {
        "trial": trial.number,
        "kind": trial.kind,
        "state": trial.state,
        "outcome": trial.outcome,
        "value": trial.value,
        "verdict": verdict["verdict"] if verdict else None,
        "settings": dict(trial.params),
        "scores": dict(trial.scores),
        "attempts": trial.attempts,
        "seconds": trial.seconds,
        "directory": str(trial.directory),
        "files": _files(trial.directory),
    }


def _find_trial(results: StudyResults, number: int) -> TrialResult:
    for trial in results.trials:
        if trial.number == number:
            return trial
    raise ConfigError(
        f"study {results.name!r} has no trial {number}",
        where="--trial",
        nearest=nearest(number, [trial.number for trial in results.trials]),
    )


def _files(directory: Path) -> list[str]:
    """The files of a trial, relative to its directory, checkpoints as directories."""
    if not directory.is_dir():
        return []
    entries = [
        entry
        for entry in directory.rglob("*")
        if entry.parent.name == "checkpoints" or (entry.is_file() and "checkpoints" not in entry.parts)
    ]
    return sorted(str(entry.relative_to(directory)) for entry in entries)


def _summarize(files: StudyDirectory) -> StudySummary:
    age_sec = time.time() - (files.directory / ".identity").stat().st_mtime
    try:
        config = files.load_config()
        results = load_results(config, files)
    except UvarError as error:
        return StudySummary(files.name, "unreadable", 0, 0, "", None, None, age_sec, str(error))
    finished = sum(trial.state in _FINISHED for trial in results.trials)
    state = "complete" if finished >= config.study.trials else "incomplete" if results.trials else "empty"
    best = results.best
    return StudySummary(
        name=files.name,
        state="running" if is_locked(files.directory / ".lock") else state,
        finished=finished,
        trials=config.study.trials,
        metric=results.metric,
        best=best.value if best else None,
        best_trial=best.number if best else None,
        age_sec=age_sec,
    )
