"""Commands that train one network: train (a final run), tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from uvar_tune.cli.options import one_file
from uvar_tune.errors import FAILED, ConfigError

_PLACES = ("run.root=", "run.storage=", "run.scratch=")  # settings that a replay may change


def train(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE.yaml [key=value]...",
            help="An exported configuration and settings to override, e.g. run.workers=8 training.images=64000.",
        ),
    ],
    replay: Annotated[
        bool, typer.Option("--replay", help="Repeat the exported trial with its seeds and compare the scores.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="Name of the run (default: from the file).")] = None,
):
    """Train and score one exported configuration. The same command resumes."""
    from uvar_tune.commands.checks import check_final_config
    from uvar_tune.config.loading import read_config

    path, overrides = one_file(arguments)
    config = read_config(path, overrides)
    if replay and not all(text.startswith(_PLACES) for text in overrides):
        raise ConfigError("--replay takes the configuration as it is, without overrides", where="command line")
    check_final_config(config, replay=replay, where=path)

    from uvar_tune.commands.final_run import run_final

    outcome = run_final(config, name or Path(path).stem, replay=replay)
    return 0 if outcome.succeeded else FAILED


def tokenizer(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="CONFIG.yaml [key=value]...",
            help="A configuration, whose sections data and tokenizer are used, and settings to override, e.g. "
            "run.workers=8 tokenizer.images=640000.",
        ),
    ],
    name: Annotated[str | None, typer.Option(help="Name of the run (default: from the file).")] = None,
    official: Annotated[
        str | None,
        typer.Option(metavar="FILE.pth", help="Also write the tokenizer in the official VAR release's layout."),
    ] = None,
):
    """Train the multi-scale VQ-VAE for tokenizer.path. The same command resumes."""
    from uvar_tune.config.loading import read_config

    path, overrides = one_file(arguments)
    config = read_config(path, overrides)

    from uvar_tune.commands.train_tokenizer import run_tokenizer

    outcome = run_tokenizer(config, name or Path(path).stem, official=official)
    return 0 if outcome.succeeded else FAILED
