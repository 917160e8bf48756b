"""Until every caller imports `progress_callback`."""

from uvar_tune.console import progress_callback as counting  # noqa: F401
