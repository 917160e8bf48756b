"""The end of a study: export of the best trial, report, costs, and the lines that the terminal shows."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Iterable
from pathlib import Path

from uvar_tune.analysis.export import UNCONFIRMED, export_trial
from uvar_tune.analysis.results import BASELINE, StudyResults, TrialResult
from uvar_tune.commands.dashboard_notes import write_notes
from uvar_tune.commands.links import command_line, mlflow_page, python
from uvar_tune.config.schema import Config
from uvar_tune.io.uri import redact_url
from uvar_tune.metrics import HEADLINE
from uvar_tune.reporting import describe_state, write_report
from uvar_tune.reporting.costs import costs
from uvar_tune.search.dashboard import artifact_directory
from uvar_tune.search.load import load_results
from uvar_tune.study_dir import StudyDirectory
from uvar_tune.tracking import RunLogger, Tracker
from uvar_tune.tracking.model_files import selected_sampling
from uvar_tune.tracking.parameters import study_tags
from uvar_tune.tracking.presentation import difference_text
from uvar_tune.training import latest_valid

_MAX_RANKED = 1000  # trials that get a rank in MLflow
_TABLE_PAGE = 100  # trials that its table loads at once


@dataclasses.dataclass(frozen=True)
class StudyOutcome:
    """What a study has found.

    Args:
        results: of all trials, best first.
        files: the study's directory.
        config: of the study.
        export: configuration file of the best trial; None if no trial has a score.
        pages: report files by kind (`html`, `png`); empty if no trial has a score.
        cpu_sec: CPU seconds of all processes of this run; None if nothing was run.
    """

    results: StudyResults
    files: StudyDirectory
    config: Config
    export: Path | None = None
    pages: dict[str, str] = dataclasses.field(default_factory=dict)
    cpu_sec: float | None = None

    @property
    def succeeded(self) -> bool:
        """Whether any trial has a score, and the baseline did not end without one."""
        return self.results.best is not None and self.lost_baseline is None

    @property
    def lost_baseline(self) -> TrialResult | None:
        """The baseline if it ended without a score: then there is nothing to compare the others with."""
        ended = (trial for trial in self.results.trials if trial.kind == BASELINE and trial.state in ("FAIL", "PRUNED"))
        return next(ended, None)


def summarize(
    config: Config, files: StudyDirectory, tracker: Tracker | None = None, *, cpu_sec: float | None = None
) -> StudyOutcome:
    """Export the best trial, write the report and log both.

    Args:
        config: of the study.
        files: its directory.
        tracker: gets the summary, if given.
        cpu_sec: appended to the study's record of costs.
    """
    results = load_results(config, files)
    if cpu_sec is not None and results.best is not None:
        append_cost_record(files, cpu_sec)
    if results.best is None:
        return StudyOutcome(results, files, config, cpu_sec=cpu_sec)
    run_id = tracker.run_id(results.best.number) if tracker else None
    export = export_trial(results, results.best, files.export, mlflow_run=run_id, unconfirmed=True)
    pages = write_report(results, files.report)
    write_notes(
        config,
        files.storage_url(config),
        results,
        {trial.number: _comparison_tags(results, trial) for trial in results.ranked()},
    )
    if tracker:
        log_summary(results, tracker, [export, *map(Path, pages.values())])
    return StudyOutcome(results, files, config, export, pages, cpu_sec)


def log_summary(results: StudyResults, tracker: RunLogger, pages: Iterable[Path]) -> None:
    """Log the best trial's checkpoint and scores, and the exports and reports."""
    best = results.best
    checkpoint = latest_valid(best.directory / "checkpoints", on_skip=lambda path, reason: None)
    if checkpoint is not None:
        tracker.log_artifact(best.number, checkpoint, "checkpoint")
        tracker.log_model(best.number, checkpoint, selected_sampling(best.params))
    for path in pages:
        tracker.log_artifact(None, path, "report")
    shown = {results.metric, *results.further_metrics, *HEADLINE}
    tracker.log_study_metrics({f"best/{name}": value for name, value in best.scores.items() if name in shown})
    for rank, trial in enumerate(results.ranked()[:_MAX_RANKED], start=1):
        tracker.set_tags(trial.number, {"uvar.rank": rank, **_comparison_tags(results, trial)})
    question = results.config.get("study", {}).get("question", "")
    state = describe_state(results)
    if len(results.trials) > _TABLE_PAGE:
        state += f" MLflow shows {_TABLE_PAGE} trials at a time, the best first; the first {_MAX_RANKED:,} have a rank."
    tracker.set_tags(None, study_tags(results.name, question, state, best.number))


def _comparison_tags(results: StudyResults, trial: TrialResult) -> dict[str, str]:
    """A trial against the baseline: by how much, and whether that is noise."""
    baseline = results.baseline
    if baseline is None or baseline.value is None or trial is baseline:
        return {}
    verdict, noise = results.verdict(trial), results.noise
    sd = math.sqrt(noise["replicate"]["value"]) if noise else None
    return {
        "uvar.verdict": verdict["verdict"] if verdict else UNCONFIRMED,
        "uvar.difference": difference_text(trial.value, baseline.value, verdict, sd),
    }


def append_cost_record(files: StudyDirectory, cpu_sec: float) -> None:
    """Append one line to the study's cost.jsonl, which has a line for each run."""
    with (files.directory / "cost.jsonl").open("a", encoding="utf-8") as handle:
        handle.write(json.dumps({"time": time.time(), "all processes": cpu_sec}) + "\n")


def summary_lines(outcome: StudyOutcome) -> list[str]:
    """Lines below the table of trials: costs, best trial, files, and commands to go on with."""
    results, files = outcome.results, outcome.files
    if results.best is None:
        return ["no trial has a score"]
    best, verdict = results.best, results.verdict(results.best)
    storage = redact_url(files.storage_url(outcome.config).removeprefix("journal:"))
    dashboard = [Path(python()).parent / "optuna-dashboard", storage]
    dashboard += ["--artifact-dir", artifact_directory(files.directory)]
    return [
        *_cost_lines(results, outcome.cpu_sec),
        f"best: trial {best.number}, {results.metric} {best.value:.4g}, exported to {outcome.export} "
        f"(verdict: {verdict['verdict'] if verdict else UNCONFIRMED})",
        f"report: {outcome.pages['html']}",
        f"picture: {outcome.pages['png']}",
        f"MLflow UI:        {mlflow_page(files)}",
        f"Optuna dashboard: {command_line(*dashboard)}",
        f"final run:        {command_line(python(), '-m', 'uvar_tune', 'train', outcome.export)}",
        *_baseline_lines(outcome),
    ]


def _baseline_lines(outcome: StudyOutcome) -> list[str]:
    """What is wrong if the baseline ended without a score, and what to do about it."""
    lost = outcome.lost_baseline
    if lost is None:
        return []
    ended = (lost.outcome or lost.state).replace("_", " ")
    return [
        f"no baseline: trial {lost.number} ended as {ended}, so the trials above compare with nothing; see "
        f"{lost.directory / 'metrics.jsonl'}, remove the cause, and start another study (--study) "
        "(study.warm_start reuses its trials)"
    ]


def _cost_lines(results: StudyResults, cpu_sec: float | None) -> list[str]:
    """Wall and CPU time by phase, over all runs of the study, and the CPU time of this run."""
    lines = []
    for row in costs(results):
        seconds = {"wall": row.wall_sec, "CPU": row.cpu_sec}
        if parts := [f"{value:,.0f} {kind} s" for kind, value in seconds.items() if value]:
            lines.append(f"time, {row.phase}: {', '.join(parts)}")
    if cpu_sec is not None:
        lines.append(f"CPU seconds of this command, all processes: {cpu_sec:.0f} ({cpu_sec / 60:.1f} minutes)")
    return lines
