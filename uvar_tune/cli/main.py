"""The application ``uvar-tune``: its commands, and how errors and signals become exit codes.

Nothing heavy is imported before the arguments are parsed, so that ``--help`` answers at once.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import logging
import os
import signal
import sys
from collections.abc import Iterator
from typing import Annotated

import typer

import uvar_tune
from uvar_tune.cli import doctor, evaluate, sample, study, train, ui
from uvar_tune.cli.options import echo
from uvar_tune.cli.usage import Command, usage
from uvar_tune.errors import BAD_INPUT, FAILED, INTERRUPTED, ConfigError, OutOfMemory, StepFailed, UvarError
from uvar_tune.ray_backend import health
from uvar_tune.tracking import mlflow_client

PROGRAM = "uvar-tune"
COMMANDS = {
    "sweep": study.sweep,
    "queue": study.queue,
    "list": study.list_studies,
    "show": study.show,
    "report": study.report,
    "export": study.export,
    "train": train.train,
    "generate": sample.generate,
    "edit": sample.edit,
    "evaluate": evaluate.evaluate,
    "tokenizer": train.tokenizer,
    "sync": study.sync,
    "ui": ui.ui,
    "doctor": doctor.doctor,
}

_SUBSTITUTE = "uvar_tune.substitute"
_SUBSTITUTES = {
    "λ": "lambda",
    "≈": "~",
    "·": "*",
    "×": "x",
    "−": "-",
    "–": "-",
    "—": "-",
    "…": "...",
    "→": "->",
    "²": "^2",
}


def _substitute(error: UnicodeError) -> tuple[str, int]:
    """Codec error handler: ASCII in place of characters that the encoding of the terminal lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(_SUBSTITUTES.get(letter, "?") for letter in missing), error.end


codecs.register_error(_SUBSTITUTE, _substitute)

app = typer.Typer(
    help="Distributed hyperparameter studies for visual autoregressive models.",
    rich_markup_mode=None,  # its tables cut option names at 80 columns
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _name, _function in COMMANDS.items():
    app.command(_name, cls=Command)(_function)


@app.command("bench", add_help_option=False, context_settings={"ignore_unknown_options": True})
def bench(arguments: Annotated[list[str] | None, typer.Argument(metavar="WHAT [OPTIONS]")] = None) -> int:
    """Measure speed on this machine. `bench --help` lists the benchmarks."""
    from uvar_tune.bench.__main__ import main as run_benchmark

    return run_benchmark(arguments or [])


def _print_version(requested: bool) -> None:
    if requested:
        echo(uvar_tune.__version__)
        raise typer.Exit()


@app.callback()
def _application(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Distributed hyperparameter studies for visual autoregressive models."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the command and its arguments; those of the process by default.

    Returns:
        The exit code: 0 done, 1 the work failed, 2 invalid input, 130 interrupted.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_SUBSTITUTE)
    try:
        code = _run(arguments or ["--help"])
        code = code if arguments else BAD_INPUT
    except ConfigError as error:
        code = _fail(str(error), BAD_INPUT)
    except StepFailed as error:
        reason = "ran out of memory" if isinstance(error, OutOfMemory) else "diverged"
        code = _fail(f"training {reason} after {error.images} images: {error}", FAILED)
    except UvarError as error:
        code = _fail(str(error), FAILED)
    except (KeyboardInterrupt, typer.Abort, SystemExit) as error:
        if isinstance(error, SystemExit) and error.code != signal.SIGTERM:  # Ray's SIGTERM handler exits with 15
            raise
        print("interrupted; the same command continues", file=sys.stderr)
        code = INTERRUPTED
    except Exception as error:
        if not hasattr(error, "format_message"):  # not a usage error of typer: unknown option, missing argument
            raise
        code = _fail(usage(error, arguments), BAD_INPUT)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    return code or 0


def _run(arguments: list[str]) -> int | None:
    """The exit code of a command. Typer treats any `EOFError` as an abort by the user; here it is an error."""
    for name, value in mlflow_client.ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in mlflow_client.LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    health.set_abort(health.abort_process)
    try:
        with log_to_stream("stderr" if arguments[0] == "bench" else "stdout"):
            return app(arguments, standalone_mode=False, prog_name=PROGRAM)
    except typer.Abort as error:
        if isinstance(error.__cause__, EOFError):
            raise error.__cause__ from None
        raise


def _fail(message: str, code: int) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code


class _EchoHandler(logging.Handler):
    """Prints the message of each record as a plain line on the `sys.stdout` or `sys.stderr` of that moment."""

    def __init__(self, stream: str):
        super().__init__(logging.INFO)
        self._stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        echo(self.format(record), file=getattr(sys, self._stream))


@contextlib.contextmanager
def log_to_stream(stream: str = "stdout") -> Iterator[None]:
    """Print the progress that the package logs (INFO and above) for the duration of a ``with`` block.

    Args:
        stream: `stderr` for commands whose stdout is data.
    """
    logger, handler = logging.getLogger("uvar_tune"), _EchoHandler(stream)
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
