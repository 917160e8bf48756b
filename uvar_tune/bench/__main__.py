"""``uvar-tune bench NAME [--json] [--small]``: both sides of a claim about speed, measured on this machine.

A new benchmark is a module with ``run(*, small, …) -> list[dict]`` and a line in ``BENCHMARKS``; further parameters of
``run`` are options, such as ``--official PATH``. Every row names the machine on which it was measured.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import logging
import sys
from collections.abc import Callable
from typing import Any

from uvar_tune.errors import BAD_INPUT, ConfigError, choose

BENCHMARKS = {
    "data": ("uvar_tune.bench.data", "reading the token cache against encoding the images"),
    "loss": ("uvar_tune.bench.loss", "the fused loss against plain cross-entropy and autograd"),
    "model": (
        "uvar_tune.bench.model",
        "tokenising, training and sampling, against the official code (--official PATH)",
    ),
    "search": ("uvar_tune.bench.search", "searching the CFG scale jointly against searching it per checkpoint"),
    "start": ("uvar_tune.bench.start", "time from a trial's start to its first step, against a plain nested trial"),
    "study": ("uvar_tune.bench.study", "CPU time of the driver for proposals, reports and results"),
    "train": ("uvar_tune.bench.train", "a training step and its memory, against the official code (--official PATH)"),
}


class _Parser(argparse.ArgumentParser):
    """Prints a usage error as one line, as the other commands do."""

    def error(self, message):
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(BAD_INPUT)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark of the command line; the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = _Parser(prog="python -m uvar_tune.bench", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    for name, (_, description) in BENCHMARKS.items():
        command = commands.add_parser(
            name,
            help=description,
            description=description,
            epilog="Further options: --official PATH (a checkout of the official code), where it is a side.",
        )
        command.add_argument("--json", action="store_true", help="rows as JSON instead of lines")
        command.add_argument("--small", action="store_true", help="a size that takes seconds, as a check")
        command.add_argument("--repeats", type=int, default=None, help="alternated measurements of each side")
    if not {"-h", "--help"} & set(arguments):
        names = [argument for argument in arguments if not argument.startswith("-")]
        if not names:
            parser.error(f"command line: a benchmark is missing (one of: {', '.join(BENCHMARKS)})")
        try:
            choose(names[0], BENCHMARKS, "benchmark", "command line")
        except ConfigError as error:
            parser.error(str(error))
    settings, further = parser.parse_known_args(arguments)
    if settings.repeats is not None and settings.repeats < 1:
        parser.error(f"--repeats {settings.repeats}: at least 1")
    run = importlib.import_module(BENCHMARKS[settings.what][0]).run
    options = {} if settings.repeats is None else {"repeats": settings.repeats}
    try:
        rows = run(small=settings.small, **options, **_options(run, further, parser))
    except ConfigError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    if settings.json:
        print(json.dumps(rows, indent=2))
    else:
        for row in rows:
            print("  ".join(f"{key}={value}" for key, value in row.items()))
    return 0


def _options(run: Callable[..., Any], further: list[str], parser: argparse.ArgumentParser) -> dict[str, str]:
    """The options for further parameters of ``run``, as text."""
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(run).parameters.items()
        if name not in ("small", "repeats")
    }
    options = _Parser(prog=parser.prog, usage=parser.format_usage().removeprefix("usage: "), allow_abbrev=False)
    for name in parameters:
        options.add_argument(f"--{name.replace('_', '-')}", default=argparse.SUPPRESS)
    return vars(options.parse_args(further))


if __name__ == "__main__":
    logging.getLogger("uvar_tune").addHandler(logging.StreamHandler())  # progress; stdout holds the rows
    logging.getLogger("uvar_tune").setLevel(logging.INFO)
    sys.exit(main())
