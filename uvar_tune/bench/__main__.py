"""``python -m uvar_tune.bench WHAT [--json] [--small]``: both sides of a claim about speed, on this machine.

A new benchmark is a module with ``run(*, small, …) -> list[dict]`` and a line in ``BENCHMARKS``; further arguments of its
``run`` are options, as ``--official PATH``. Rows carry the machine, so that a number never travels without it.
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
    "loss": ("uvar_tune.bench.loss", "the fused objective against plain cross-entropy and autograd"),
    "model": (
        "uvar_tune.bench.model",
        "tokenising, training and sampling, against the official code (--official PATH)",
    ),
    "profile": ("uvar_tune.bench.profile", "searching CFG with the rest against profiling each checkpoint"),
    "start": ("uvar_tune.bench.start", "from a trial's start to its first step, against a plain nested trial"),
    "study": ("uvar_tune.bench.study", "what asking, reporting and telling cost the driver"),
    "train": ("uvar_tune.bench.train", "a training step and its memory, against the official code (--official PATH)"),
}


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as the other doors do."""

    def error(self, message):
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(BAD_INPUT)


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = _Parser(prog="python -m uvar_tune.bench", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    for name, (_, description) in BENCHMARKS.items():
        command = commands.add_parser(
            name,
            help=description,
            description=description,
            epilog="further options: the keyword arguments of run() in its module, as --name VALUE",
        )
        command.add_argument("--json", action="store_true", help="rows as JSON instead of lines")
        command.add_argument("--small", action="store_true", help="a shape that takes seconds, to see that it works")
        command.add_argument("--repeats", type=int, default=None, help="alternated measurements of each side")
    if not {"-h", "--help"} & set(arguments):
        named = [one for one in arguments if not one.startswith("-")]
        if not named:
            parser.error(f"command line: a benchmark is missing (one of: {', '.join(BENCHMARKS)})")
        try:
            choose(named[0], BENCHMARKS, "benchmark", "command line")
        except ConfigError as error:
            parser.error(str(error))
    chosen, further = parser.parse_known_args(arguments)
    if chosen.repeats is not None and chosen.repeats < 1:
        parser.error(f"--repeats {chosen.repeats}: at least 1")
    run = importlib.import_module(BENCHMARKS[chosen.what][0]).run
    options = {} if chosen.repeats is None else {"repeats": chosen.repeats}
    try:
        rows = run(small=chosen.small, **options, **_options(run, further, parser))
    except ConfigError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    if chosen.json:
        print(json.dumps(rows, indent=2))
    else:
        for row in rows:
            print("  ".join(f"{key}={value}" for key, value in row.items()))
    return 0


def _options(run: Callable[..., Any], further: list[str], parser: argparse.ArgumentParser) -> dict[str, str]:
    """The further arguments of ``run`` among the command line's, as the text they are given as."""
    known = {
        name: parameter
        for name, parameter in inspect.signature(run).parameters.items()
        if name not in ("small", "repeats")
    }
    own = _Parser(prog=parser.prog, usage=parser.format_usage().removeprefix("usage: "), allow_abbrev=False)
    for name in known:
        own.add_argument(f"--{name.replace('_', '-')}", default=argparse.SUPPRESS)
    return vars(own.parse_args(further))


if __name__ == "__main__":
    logging.getLogger("uvar_tune").addHandler(logging.StreamHandler())  # progress; stdout holds the rows
    logging.getLogger("uvar_tune").setLevel(logging.INFO)
    sys.exit(main())
