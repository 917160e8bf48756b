"""``python -m uvar_tune.sweep``: `uvar-tune sweep` as a module, the entry point of submitted Ray jobs."""

import sys

from uvar_tune.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["sweep", *sys.argv[1:]]))
