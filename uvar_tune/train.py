"""``python -m uvar_tune.train``: `uvar-tune train` as a module."""

import sys

from uvar_tune.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
