"""Commands on studies: sweep, queue, list, show, report, export, sync."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from uvar_tune.cli.options import Json, Root, default_space, echo, one_file
from uvar_tune.errors import FAILED, ConfigError

_SYNC_TIMEOUT_SEC = 24 * 3600.0  # an upper bound; a server that does not answer ends the command at once
_PHASES = (
    "calibrate (references), noise (of the baseline), explore and refine (the search), inference "
    "(CFG and further axes), confirm (verdicts on fresh seeds)"
)


def sweep(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SPACE.yaml] [key=value]...",
            help="Space file (default: search_spaces/digits.yaml) and settings to override, e.g. "
            "training.images=64000.",
        ),
    ] = None,
    trials: Annotated[int | None, typer.Option(help="Total number of trials, including the baseline.")] = None,
    study: Annotated[str | None, typer.Option(help="Name of the study; the same name resumes it.")] = None,
    phase: Annotated[str | None, typer.Option(help=f"{_PHASES}, or all (default: explore, then refine).")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and print what would run.")] = False,
):
    """Run or resume a study. A finished study prints its table."""
    from uvar_tune.config.loading import read_config

    path, overrides = one_file(arguments or [], default_space())
    config = read_config(path, overrides, name=study, trials=trials)
    if dry_run:
        from uvar_tune.commands.dry_run import preview_study

        return preview_study(config, phase=phase)
    from uvar_tune.commands.sweep import run_study

    outcome = run_study(config, phase=phase)

    from uvar_tune.commands.summary import summary_lines  # imports PyTorch

    _print_ranked(outcome.results)
    for line in summary_lines(outcome):
        echo(line)
    return 0 if outcome.succeeded else FAILED


def queue(
    study: Annotated[str, typer.Argument(metavar="NAME", help="Name of the study; it may be running.")],
    values: Annotated[
        list[str],
        typer.Argument(metavar="key=value...", help="Searched settings and their values, e.g. loss.lambda_1=0.3."),
    ],
    root: Root = None,
):
    """Queue a trial. It runs before new proposals; settings left out are sampled."""
    from uvar_tune.config.loading import parse_overrides
    from uvar_tune.search.queue import queue_trial
    from uvar_tune.study_dir import StudyDirectory, resolve_root

    number = queue_trial(StudyDirectory(resolve_root(root), study), parse_overrides(values))
    echo(f"trial {number} of study {study!r} is queued; a running sweep takes it next, else run the sweep again")


def list_studies(root: Root = None, as_json: Json = False):
    """List the studies below a root. Shows state, finished trials, best value and age."""
    from uvar_tune.commands.overview import summarize_studies
    from uvar_tune.study_dir import resolve_root

    directory = resolve_root(root)
    summaries = summarize_studies(directory)
    if as_json:
        echo(json.dumps([summary.as_dict() for summary in summaries], indent=2))
    elif not summaries:
        echo(f"no studies below {directory}")
    else:
        _print_columns(
            ["study", "state", "trials", "metric", "best", "age"],
            [
                [
                    summary.name,
                    summary.state,
                    f"{summary.finished}/{summary.trials}",
                    summary.metric,
                    "" if summary.best is None else f"{summary.best:.4g} (trial {summary.best_trial})",
                    _duration(summary.age_sec),
                ]
                for summary in summaries
            ],
        )
        for summary in summaries:
            if summary.problem:
                echo(f"{summary.name}: {summary.problem}")


def show(
    study: Annotated[str, typer.Argument(metavar="NAME", help="Name of the study.")],
    trial: Annotated[int | None, typer.Option(min=0, help="Show this trial only.")] = None,
    root: Root = None,
    as_json: Json = False,
):
    """Print a study's ranked table or one trial. With --trial: settings, scores, attempts and files."""
    from uvar_tune.commands.overview import describe_study, describe_trial
    from uvar_tune.search.load import load_results
    from uvar_tune.study_dir import StudyDirectory, resolve_root

    files = StudyDirectory(resolve_root(root), study)
    results = load_results(files.load_config(), files)
    if trial is None:
        if as_json:
            echo(json.dumps(describe_study(results), indent=2))
        else:
            _print_ranked(results)
            _print_mlflow_page(files)
        return
    description = describe_trial(results, trial)
    if as_json:
        echo(json.dumps(description, indent=2))
    else:
        _print_sections(description)


def report(
    study: Annotated[
        list[str],
        typer.Option(
            help="Name of the study. Repeat it for grids that differ only in study.seed: they are pooled as replicates."
        ),
    ],
    root: Root = None,
    out: Annotated[str | None, typer.Option(metavar="DIR", help="Default: the first study's report/.")] = None,
    log: Annotated[bool, typer.Option(help="Log the pages to the study's MLflow run.")] = True,
):
    """Write the report of a study as HTML and PNG. Also works while the study runs."""
    from uvar_tune.analysis.pooled import pool
    from uvar_tune.console import print_table
    from uvar_tune.io.outputs import check_directory
    from uvar_tune.reporting import pooled_table, write_pooled, write_report
    from uvar_tune.search.load import load_results
    from uvar_tune.study_dir import StudyDirectory, resolve_root

    directories = [StudyDirectory(resolve_root(root), name) for name in study]
    loaded = [(files.load_config(), load_results(files.load_config(), files)) for files in directories]
    for name, (_, results) in zip(study, loaded, strict=True):
        if results.best is None:
            raise ConfigError(f"study {name!r} has no finished trial yet", where="--study")
    directory = Path(out) if out else directories[0].report
    check_directory(directory, "--out" if out else "--root")
    if len(loaded) > 1:
        pooled = pool(loaded)
        print_table(pooled_table(pooled), width=200)
        pages = write_pooled(pooled, directory)
    else:
        _print_ranked(loaded[0][1])
        pages = write_report(loaded[0][1], directory)
    for path in pages.values():
        echo(path)
    _print_mlflow_page(directories[0])
    if log:
        tracker = directories[0].open_tracker()
        tracker.start_study(params={}, tags={})
        for path in pages.values():
            tracker.log_artifact(None, path, "report")
        tracker.close()


def export(
    study: Annotated[str, typer.Option(help="Name of the study.")],
    top: Annotated[int | None, typer.Option(help="Export the K best trials (default: 1).")] = None,
    trial: Annotated[int | None, typer.Option(help="Export the trial of this number.")] = None,
    run: Annotated[str | None, typer.Option(help="Export the trial of this MLflow run id.")] = None,
    unconfirmed: Annotated[bool, typer.Option("--unconfirmed", help="Also export trials without a verdict.")] = False,
    out: Annotated[str | None, typer.Option(metavar="DIR", help="Default: the study's export/.")] = None,
    register: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Also register the checkpoints as versions of this MLflow model."),
    ] = None,
    root: Root = None,
):
    """Write YAML files for `uvar-tune train`. They carry their provenance."""
    if sum(choice is not None for choice in (top, trial, run)) > 1:
        raise ConfigError("takes one of --top, --trial and --run", where="command line")
    from uvar_tune.analysis.export import export_trial, select_trials
    from uvar_tune.search.load import load_results
    from uvar_tune.study_dir import StudyDirectory, resolve_root
    from uvar_tune.tracking import run_ids

    files = StudyDirectory(resolve_root(root), study)
    config = files.load_config()
    results = load_results(config, files)
    runs = run_ids(files.directory / "mlflow")
    if run is not None:
        trial = next((number for number, run_id in runs.items() if run_id == run), None)
        if trial is None:
            raise ConfigError(f"no trial of study {study!r} is MLflow run {run!r}", where="--run")
    directory = Path(out) if out else files.export
    selected = select_trials(results, top=top, number=trial)
    for result in selected:
        run_id = runs.get(result.number)
        echo(export_trial(results, result, directory, mlflow_run=run_id, unconfirmed=unconfirmed))
    if register is not None:
        from uvar_tune.commands.register import register_models

        for line in register_models(files, results, selected, register):
            echo(line)


def sync(
    study: Annotated[str, typer.Option(help="Name of the study, or of a final run's directory.")],
    root: Root = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Send everything again, e.g. to a new server.")] = False,
):
    """Send MLflow what it missed. Exit code 1 if something remains."""
    from uvar_tune.study_dir import StudyDirectory, resolve_root

    files = StudyDirectory(resolve_root(root), study)
    if not (files.directory / "mlflow").exists():
        files.load_config()  # raises, with the nearest name, if there is no such study
    with files.lock():
        if rebuild:
            from uvar_tune.commands.rebuild_tracking import rebuild_tracking

            rebuild_tracking(files)
        if not files.open_tracker().close(_SYNC_TIMEOUT_SEC):
            return FAILED
    echo(f"MLflow is up to date with study {study!r}")
    return 0


def _print_ranked(results) -> None:
    from uvar_tune.console import print_table
    from uvar_tune.reporting import ranked_table

    print_table(ranked_table(results))


def _print_mlflow_page(files) -> None:
    from uvar_tune.commands.links import mlflow_page

    if (files.directory / "mlflow").exists():
        echo(f"MLflow UI: {mlflow_page(files)}")


def _print_columns(header: list[str], rows: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        echo("  ".join(f"{text:{width}}" for text, width in zip(row, widths, strict=True)).rstrip())


def _print_sections(sections: dict[str, Any]) -> None:
    for name, value in sections.items():
        if not isinstance(value, (dict, list)):
            echo(f"{name}: {value}")
        elif value:
            echo(f"{name}:")
            items = value.items() if isinstance(value, dict) else enumerate(value, 1)
            for key, item in items:
                echo(f"  {key}: {item}")


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
