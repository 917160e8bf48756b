"""``python -m uvar_tune.export``: `uvar-tune export` as a module."""

import sys

from uvar_tune.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
