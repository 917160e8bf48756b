"""Train a tokenizer: ``python -m uvar_tune.tokenizer CONFIG.yaml [--name NAME] [--official FILE.pth] [key=value …]``."""

from __future__ import annotations

from typing import Annotated

import typer

from uvar_tune.cli.common import one_file, run


def tokenizer(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="CONFIG.yaml [key=value]...",
            help="A configuration, of which the "
            "sections data and tokenizer count, and settings to override, e.g. "
            "run.workers=8 tokenizer.images=640000.",
        ),
    ],
    name: Annotated[str | None, typer.Option(help="Name of the run (default: from the file).")] = None,
    official: Annotated[
        str | None, typer.Option(metavar="FILE.pth", help="Write it as the official VAR release does, too.")
    ] = None,
):
    """Train the multi-scale VQ-VAE that tokenizer.path then names; the same command resumes, or says where it lies."""
    from pathlib import Path

    from uvar_tune.config.loading import read_config

    path, overrides = one_file(arguments)
    config = read_config(path, overrides)

    from uvar_tune.commands.train_tokenizer import run_tokenizer

    return run_tokenizer(config, name or Path(path).stem, official=official)


if __name__ == "__main__":
    run(tokenizer)
