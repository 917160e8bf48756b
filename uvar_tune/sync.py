"""Send MLflow what it has missed: ``python -m uvar_tune.sync --study NAME [--rebuild]``."""

from __future__ import annotations

from typing import Annotated

import typer

from uvar_tune import door

_TIMEOUT_SEC = 24 * 3600.0  # as long as the server takes it; one that does not answer ends it at once


def sync(
    study: Annotated[str, typer.Option(help="Name of the study, or of a final run's directory.")],
    root: Annotated[str | None, typer.Option(help="Where studies lie (run.root; default: runs).")] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Make the study's runs anew from its storage and records.")] = False,
):
    """Deliver what a study's MLflow server has missed, in order; exit code 1 if something remains."""
    from uvar_tune.study.files import StudyFiles, resolve_root
    from uvar_tune.tracking.sink import MLflowSink

    files = StudyFiles(resolve_root(root), study)
    spool = files.directory / "mlflow"
    if rebuild or not spool.exists():
        files.stored()  # names the nearest study where there is none
    with files.lock():
        results = _forgotten(files, spool) if rebuild else None
        sink = MLflowSink(tracking_uri=files.tracking_uri(), experiment="uvar_tune", study=files.name,
                          artifact_root=files.root / "mlartifacts", spool_dir=spool, say=door.say)
        if results is not None:
            _replay(files, results, sink)
        if not sink.close(_TIMEOUT_SEC):
            return 1
    door.say(f"MLflow has all of study {study!r}")
    return 0


def _forgotten(files, spool):
    from uvar_tune.study.load import load_results
    from uvar_tune.tracking.sink.spool import Spool

    results = load_results(files.stored(), files)
    Spool(spool).forget()
    return results


def _replay(files, results, sink) -> None:
    """Tell the whole study again, out of the Optuna storage and the trials' records, at the times it happened."""
    from uvar_tune.tracking.parameters import (
        origin_tags,
        profiled,
        run_parameters,
        scored_under,
        study_parameters,
        that_ran,
    )
    from uvar_tune.tracking.record import read_records

    config = files.stored()
    spans = {trial.number: _span(trial.directory / "metrics.jsonl") for trial in results.trials}
    made_by = next((trial.made_by for trial in results.trials if trial.made_by), {})
    prepared = read_records(files.directory / "prepare.jsonl")[0]
    began = prepared[0]["time"] if prepared else min((first for first, _ in spans.values() if first), default=None)
    sink.start_study(study_parameters(config), origin_tags(made_by), at=began)
    facts = next((record for record in reversed(prepared) if record["kind"] == "prepared"), {})
    sink.study_metrics({f"prepare/{key}": value for key, value in facts.items()
                        if isinstance(value, float) and key not in ("time", "attempt")})
    for trial in results.trials:
        first, last = spans[trial.number]
        tags = {"uvar.kind": trial.kind, "uvar.attempt": str(trial.attempts)}
        sink.watch_trial(trial.number, trial.directory, run_parameters(config, trial.params), tags, at=first)
        if trial.state in ("COMPLETE", "PRUNED", "FAIL"):
            complete = trial.state == "COMPLETE"
            decided = {name: trial.params[name] for name in profiled(config) if complete and name in trial.params}
            if complete:
                decided |= {**that_ran(trial.ran), **scored_under(results.protocol, trial.seeds)}
            sink.finish_trial(trial.number, "FINISHED" if complete else "FAILED", trial.scores, decided, at=last)
    if results.best is not None:
        _replay_end(files, results, sink, spans)


def _replay_end(files, results, sink, spans) -> None:
    best = results.best
    checkpoints = best.directory / "checkpoints"
    if checkpoints.exists():
        from uvar_tune.training import latest_valid

        checkpoint = latest_valid(checkpoints, on_skip=lambda path, why: None)
        if checkpoint is not None:
            sink.artifact(best.number, checkpoint, "checkpoint")
    for path in sorted([*files.export.glob("*.yaml"), *files.report.glob("*.*")]):
        sink.artifact(None, path, "report")
    sink.study_metrics({f"best/{name}": value for name, value in best.scores.items()})
    sink.finish_study("FINISHED", at=max((last for _, last in spans.values() if last), default=None))


def _span(record) -> tuple[float | None, float | None]:
    """(time of the first line, time of the last) of a record; (None, None) where there is none."""
    from uvar_tune.tracking.record import read_records

    lines = read_records(record)[0]
    return (lines[0]["time"], lines[-1]["time"]) if lines else (None, None)


if __name__ == "__main__":
    door.run(sync)
