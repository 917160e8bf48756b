"""Send MLflow what it has missed: ``python -m uvar_tune.sync --study NAME [--rebuild]``."""

from __future__ import annotations

from typing import Annotated

import typer

from uvar_tune.cli.common import echo, run

_TIMEOUT_SEC = 24 * 3600.0  # as long as the server takes it; one that does not answer ends it at once


def sync(
    study: Annotated[str, typer.Option(help="Name of the study, or of a final run's directory.")],
    root: Annotated[str | None, typer.Option(help="Where studies lie (run.root; default: runs).")] = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Send everything once more: to a new server, say.")
    ] = False,
):
    """Deliver what a study's MLflow server has missed, in order; exit code 1 if something remains."""
    from uvar_tune.study_dir import StudyDirectory, resolve_root

    files = StudyDirectory(resolve_root(root), study)
    if not (files.directory / "mlflow").exists():
        files.stored()  # names the nearest study where there is none
    with files.lock():
        if rebuild:
            from uvar_tune.commands.rebuild_tracking import rebuild_tracking

            rebuild_tracking(files)
        if not files.sink().close(_TIMEOUT_SEC):
            return 1
    echo(f"MLflow has all of study {study!r}")
    return 0


if __name__ == "__main__":
    run(sync)
