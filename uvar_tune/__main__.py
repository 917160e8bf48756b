"""``python -m uvar_tune COMMAND``, the same as ``uvar-tune COMMAND``."""

import sys

from uvar_tune.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
