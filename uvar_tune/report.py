"""The report of a study: ``python -m uvar_tune.report --study NAME``."""

from __future__ import annotations

from typing import Annotated

import typer

from uvar_tune import door


def report(
    study: Annotated[str, typer.Option(help="Name of the study.")],
    root: Annotated[str | None, typer.Option(help="Where studies lie (run.root; default: runs).")] = None,
    out: Annotated[str | None, typer.Option(help="Directory (default: the study's report/).")] = None,
    log: Annotated[bool, typer.Option(help="Log the pages to the study's MLflow run.")] = True,
):
    """Write the ranked table and the study figure as HTML and PNG, also while the study runs."""
    from pathlib import Path

    from rich.console import Console

    from uvar_tune.errors import ConfigError
    from uvar_tune.reporting import ranked_table, write_report
    from uvar_tune.study.files import StudyFiles, resolve_root
    from uvar_tune.study.load import load_results

    files = StudyFiles(resolve_root(root), study)
    results = load_results(files.stored(), files)
    if results.best is None:
        raise ConfigError(f"study {study!r} has no finished trial yet", where="--study")
    Console(width=None if Console().is_terminal else 140).print(ranked_table(results))
    pages = write_report(results, Path(out) if out else files.report)
    for path in pages.values():
        door.say(str(path))
    if log:
        _log(files, pages)


def _log(files, pages) -> None:
    from uvar_tune.tracking.sink import MLflowSink

    sink = MLflowSink(tracking_uri=files.tracking_uri(), experiment="uvar_tune", study=files.name,
                      artifact_root=files.root / "mlartifacts", spool_dir=files.directory / "mlflow", say=door.say)
    sink.start_study(params={}, tags={})
    for path in pages.values():
        sink.artifact(None, path, "report")
    sink.close(timeout_sec=60)


if __name__ == "__main__":
    door.run(report)
