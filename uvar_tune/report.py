"""``python -m uvar_tune.report``: `uvar-tune report` as a module."""

import sys

from uvar_tune.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["report", *sys.argv[1:]]))
