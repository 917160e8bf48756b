"""Run or resume a study: ``python -m uvar_tune.sweep [SPACE.yaml] [--trials TOTAL] [--study NAME] [key=value …]``."""

from __future__ import annotations

from typing import Annotated

import typer

from uvar_tune.cli.common import default_space, one_file, run


def sweep(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SPACE.yaml] [key=value]...",
            help="Space file (default: search_spaces/digits.yaml) and settings to "
            "override, e.g. training.images=64000.",
        ),
    ] = None,
    trials: Annotated[int | None, typer.Option(help="Total number of trials, the baseline among them.")] = None,
    study: Annotated[str | None, typer.Option(help="Name of the study; the same name resumes it.")] = None,
    phase: Annotated[
        str | None,
        typer.Option(help="calibrate, noise, explore, refine, profile, confirm or all (default: explore and refine)."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and say what would run.")] = False,
):
    """Run a hyperparameter study; the same command again resumes it, or prints its table when it has finished."""
    from uvar_tune.config.loading import read_config

    path, overrides = one_file(arguments or [], default_space())
    config = read_config(path, overrides, name=study, trials=trials)

    if dry_run:
        from uvar_tune.commands.dry_run import plan

        return plan(config, phase=phase)
    from uvar_tune.commands.sweep import run_study

    return run_study(config, phase=phase)


if __name__ == "__main__":
    run(sweep)
