"""Export configurations for final runs: ``python -m uvar_tune.export --study NAME (--top K | --trial N | --run RUN_ID)``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from uvar_tune.cli import common
from uvar_tune.errors import ConfigError


def export(
    study: Annotated[str, typer.Option(help="Name of the study.")],
    top: Annotated[int | None, typer.Option(help="Export the K best trials.")] = None,
    trial: Annotated[int | None, typer.Option(help="Export the trial of this number.")] = None,
    run: Annotated[str | None, typer.Option(help="Export the trial of this MLflow run id.")] = None,
    unconfirmed: Annotated[
        bool, typer.Option("--unconfirmed", help="Export candidates too: trials without a verdict.")
    ] = False,
    out: Annotated[str | None, typer.Option(help="Directory (default: the study's export/).")] = None,
    root: Annotated[str | None, typer.Option(help="Where studies lie (run.root; default: runs).")] = None,
):
    """Write YAML files that `python -m uvar_tune.train` runs, with their provenance; the best one by default."""
    if sum(choice is not None for choice in (top, trial, run)) > 1:
        raise ConfigError("takes one of --top, --trial and --run", where="command line")
    from uvar_tune.commands.export import export_trial, select
    from uvar_tune.search.load import load_results
    from uvar_tune.study_dir import StudyDirectory, resolve_root

    files = StudyDirectory(resolve_root(root), study)
    config = files.stored()
    results = load_results(config, files)
    runs = _runs(files)
    if run is not None:
        found = [number for number, run_id in runs.items() if run_id == run]
        if not found:
            raise ConfigError(f"no trial of study {study!r} is MLflow run {run!r}", where="--run")
        trial = found[0]
    for chosen in select(results, top=top, number=trial):
        common.echo(
            str(
                export_trial(
                    results,
                    chosen,
                    config,
                    Path(out) if out else files.export,
                    mlflow_run=runs.get(chosen.number),
                    unconfirmed=unconfirmed,
                )
            )
        )


def _runs(files) -> dict[int, str]:
    from uvar_tune.tracking import known_runs

    return known_runs(files.directory / "mlflow")


if __name__ == "__main__":
    common.run(export)
