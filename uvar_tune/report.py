"""The report of a study: ``python -m uvar_tune.report --study NAME``; of several, as replicates of each other, together."""

from __future__ import annotations

from typing import Annotated

import typer

from uvar_tune.cli.common import echo, run


def report(
    study: Annotated[
        list[str],
        typer.Option(
            help="Name of the study. Given several times: grids that differ in study.seed, each a "
            "replicate of every configuration."
        ),
    ],
    root: Annotated[str | None, typer.Option(help="Where studies lie (run.root; default: runs).")] = None,
    out: Annotated[str | None, typer.Option(help="Directory (default: the first study's report/).")] = None,
    log: Annotated[bool, typer.Option(help="Log the pages to the study's MLflow run.")] = True,
):
    """Write the ranked table and the study figure as HTML and PNG, also while the study runs."""
    from pathlib import Path

    from rich.console import Console

    from uvar_tune.analysis.pooled import pool
    from uvar_tune.errors import ConfigError
    from uvar_tune.io.outputs import check_directory
    from uvar_tune.reporting import pooled_table, ranked_table, write_pooled, write_report
    from uvar_tune.search.load import load_results
    from uvar_tune.study_dir import StudyDirectory, resolve_root

    found = [StudyDirectory(resolve_root(root), name) for name in study]
    loaded = [(files.stored(), load_results(files.stored(), files)) for files in found]
    for name, (_, results) in zip(study, loaded, strict=True):
        if results.best is None:
            raise ConfigError(f"study {name!r} has no finished trial yet", where="--study")
    directory = Path(out) if out else found[0].report
    check_directory(directory, "--out" if out else "--root")
    if len(loaded) > 1:
        pooled = pool(loaded)
        Console(width=None if Console().is_terminal else 200).print(pooled_table(pooled))
        pages = write_pooled(pooled, directory)
    else:
        Console(width=None if Console().is_terminal else 140).print(ranked_table(loaded[0][1]))
        pages = write_report(loaded[0][1], directory)
    for path in pages.values():
        echo(str(path))
    if log:
        _log(found[0], pages)


def _log(files, pages) -> None:
    sink = files.sink()
    sink.start_study(params={}, tags={})
    for path in pages.values():
        sink.artifact(None, path, "report")
    sink.close()


if __name__ == "__main__":
    run(report)
