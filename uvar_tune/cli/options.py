"""Options and arguments that several commands share.

The bounds of sampling options are those of `uvar_tune.model.sampling`, which is imported only after parsing.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Annotated, TextIO

import typer

from uvar_tune.errors import ConfigError

CfgScale = Annotated[float, typer.Option(min=0, max=100, help="Guidance at the last scale; 0 = off.")]
CfgRamp = Annotated[float, typer.Option(min=0, max=100, help="Growth of the guidance: t_k = cfg·(k/(K−1))^ramp.")]
TopK = Annotated[int, typer.Option(min=0, help="Sample from the k most probable codes; 0 = off.")]
TopP = Annotated[float, typer.Option(min=0, max=1, help="Sample from the most probable codes of mass p; 0 = off.")]
Temperature = Annotated[float, typer.Option(min=1e-4, max=100, help="Divides the logits.")]
Vae = Annotated[str | None, typer.Option(metavar="FILE.pth", help="Official tokenizer file, with --var.")]
Var = Annotated[str | None, typer.Option(metavar="FILE.pth", help="Official VAR file, with --vae.")]
Tokenizer = Annotated[
    str | None, typer.Option(metavar="PATH", help="Directory of the tokenizer (default: where it was trained).")
]
Device = Annotated[str, typer.Option(help="auto (a GPU if there is one), cpu, cuda, cuda:1, …")]
Root = Annotated[
    str | None, typer.Option(metavar="DIR", help="Directory that holds the studies (run.root; default: runs).")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def split_overrides(arguments: list[str]) -> tuple[list[str], list[str]]:
    """(files, ``key=value`` overrides) of the positional arguments."""
    overrides = [argument for argument in arguments if "=" in argument and not os.path.exists(argument)]
    return [argument for argument in arguments if argument not in overrides], overrides


def one_file(arguments: list[str], default: str | None = None) -> tuple[str, list[str]]:
    """The one file among the arguments (or the default) and the overrides.

    Raises:
        ConfigError: several files, or none and no default.
    """
    files, overrides = split_overrides(arguments)
    if len(files) > 1:
        raise ConfigError(f"one file expected, got {files}", where="command line")
    if not files and default is None:
        raise ConfigError("a configuration file is missing", where="command line")
    return (files[0] if files else default), overrides


def default_space() -> str:
    """`search_spaces/digits.yaml` in the working directory, else in the checkout of the package."""
    local = Path("search_spaces/digits.yaml")
    return str(local if local.exists() else Path(__file__).resolve().parents[2] / local)


def echo(text: object, file: TextIO | None = None) -> None:
    """Print a line to ``file`` (stdout) and flush it; a closed pipe does not end the command."""
    with contextlib.suppress(OSError):
        print(text, file=file, flush=True)
