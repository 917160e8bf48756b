"""Run an exported configuration: ``python -m uvar_tune.train FILE.yaml [key=value …] [--replay]``."""

from __future__ import annotations

from typing import Annotated

import typer

from uvar_tune.cli.common import one_file, run
from uvar_tune.errors import ConfigError


def train(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE.yaml [key=value]...",
            help="An export and settings to override, e.g. run.workers=8 training.images=64000.",
        ),
    ],
    replay: Annotated[
        bool, typer.Option("--replay", help="Repeat the trial as it was and compare its numbers.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="Name of the run (default: from the file).")] = None,
):
    """Train one configuration as a final run, score it and keep its checkpoints; the same command resumes."""
    from pathlib import Path

    from uvar_tune.config.loading import read_config

    path, overrides = one_file(arguments)
    config = read_config(path, overrides)
    if config.space:
        raise ConfigError("is a space file: run it with uvar_tune.sweep, or export a trial of it", where=path)
    provenance = config.provenance or {}
    free = [text for text in overrides if text.startswith(("run.root=", "run.storage=", "run.scratch="))]
    if replay and len(free) < len(overrides):
        raise ConfigError("--replay takes the configuration as it is, without overrides", where="command line")
    if replay and not provenance.get("seeds"):
        raise ConfigError("--replay needs an export, whose provenance holds seeds and scores", where=path)

    from uvar_tune.commands.final_run import run_final

    return run_final(config, name or Path(path).stem, replay=replay)


if __name__ == "__main__":
    run(train)
