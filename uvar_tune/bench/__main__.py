"""``python -m uvar_tune.bench WHAT [--json] [--small]``: both sides of a claim about speed, on this machine.

A new benchmark is a module with ``run(*, small, …) -> list[dict]`` and a line in ``BENCHMARKS``. Rows carry the machine,
so that a number never travels without it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys

BENCHMARKS = {"loss": ("uvar_tune.bench.loss", "the fused objective against plain cross-entropy and autograd")}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m uvar_tune.bench", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    for name, (_, description) in BENCHMARKS.items():
        command = commands.add_parser(name, help=description, description=description)
        command.add_argument("--json", action="store_true", help="rows as JSON instead of lines")
        command.add_argument("--small", action="store_true", help="a shape that takes seconds, to see that it works")
        command.add_argument("--repeats", type=int, default=None, help="alternated measurements of each side")
    chosen = parser.parse_args(arguments)
    if chosen.repeats is not None and chosen.repeats < 1:
        parser.error(f"--repeats {chosen.repeats}: at least 1")
    options = {} if chosen.repeats is None else {"repeats": chosen.repeats}
    rows = importlib.import_module(BENCHMARKS[chosen.what][0]).run(small=chosen.small, **options)
    if chosen.json:
        print(json.dumps(rows, indent=2))
    else:
        for row in rows:
            print("  ".join(f"{key}={value}" for key, value in row.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
