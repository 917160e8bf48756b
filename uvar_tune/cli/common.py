"""What every door does alike: one clear line and exit code 2 for bad input, a clean end on Ctrl-C, usage on --help.

The doors import nothing heavy before their arguments are parsed, so that ``--help`` answers at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from uvar_tune.cli.usage import Command, usage
from uvar_tune.errors import BAD_INPUT, FAILED, INTERRUPTED, ConfigError, OutOfMemory, StepFailed, UvarError

# The bounds are those of `uvar_tune.model.sampling`, which the doors do not import before their arguments are parsed.
CfgScale = Annotated[float, typer.Option(min=0, max=100, help="Guidance at the last scale; 0 = off.")]
CfgRamp = Annotated[float, typer.Option(min=0, max=100, help="How guidance grows: t_k = cfg·(k/(K−1))^ramp.")]
TopK = Annotated[int, typer.Option(min=0, help="0 = off.")]
TopP = Annotated[float, typer.Option(min=0, max=1, help="0 = off.")]
Temperature = Annotated[float, typer.Option(min=1e-4, max=100, help="Of the logits.")]


def run(command: Callable[..., Any]) -> None:
    """Run a Typer command as a program; ``command`` returns an exit code or None."""
    app = typer.Typer(
        add_completion=False, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
    )
    app.command(cls=Command)(command)
    try:
        code = _run(app)
    except ConfigError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        code = BAD_INPUT
    except StepFailed as error:
        what = "ran out of memory" if isinstance(error, OutOfMemory) else "diverged"
        print(f"error: training {what} after {error.images} images: {error}", file=sys.stderr)
        code = FAILED
    except UvarError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        code = FAILED
    except (KeyboardInterrupt, typer.Abort, SystemExit) as error:
        if (
            isinstance(error, SystemExit) and error.code != signal.SIGTERM
        ):  # how Ray's handler of SIGTERM ends a program
            raise
        print("interrupted; the same command continues", file=sys.stderr)
        code = INTERRUPTED
    except Exception as error:
        if hasattr(error, "format_message"):  # click's usage errors: unknown option, missing argument
            print(f"error: {usage(error, sys.argv[1:])}", file=sys.stderr)
            code = BAD_INPUT
        else:
            raise
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    sys.exit(code or 0)


def _run(app: typer.Typer) -> int | None:
    """The command's exit code. Click takes a file that ends too early for the end of a user's input; it is an error."""
    try:
        with log_to_stdout():
            return app(standalone_mode=False)
    except typer.Abort as error:
        if isinstance(error.__cause__, EOFError):
            raise error.__cause__ from None
        raise


def split_overrides(arguments: list[str]) -> tuple[list[str], list[str]]:
    """(files, ``key=value`` overrides) out of the positional arguments."""
    overrides = [argument for argument in arguments if "=" in argument and not os.path.exists(argument)]
    return [argument for argument in arguments if argument not in overrides], overrides


def one_file(arguments: list[str], default: str | None = None) -> tuple[str, list[str]]:
    """The one file among the arguments (or the default) and the overrides."""
    files, overrides = split_overrides(arguments)
    if len(files) > 1:
        raise ConfigError(f"one file expected, got {files}", where="command line")
    if not files and default is None:
        raise ConfigError("a configuration file is missing", where="command line")
    return (files[0] if files else default), overrides


def default_space() -> str:
    """`search_spaces/digits.yaml`, here or beside the package."""
    here = Path("search_spaces/digits.yaml")
    return str(here if here.exists() else Path(__file__).resolve().parents[2] / here)


def echo(text: str) -> None:
    """Print a line to stdout and flush it; a closed pipe does not end the command."""
    with contextlib.suppress(OSError):
        print(text, flush=True)


class _EchoHandler(logging.Handler):
    """Prints the message of every record as a plain line on the `sys.stdout` of that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        echo(self.format(record))


@contextlib.contextmanager
def log_to_stdout() -> Iterator[None]:
    """Print the progress that the package logs (INFO and above) to stdout for the duration of a ``with`` block."""
    logger, handler = logging.getLogger("uvar_tune"), _EchoHandler(logging.INFO)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # a dependency that configures the root logger would print every line twice
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
