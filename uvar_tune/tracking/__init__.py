"""MLflow as a view of a study: the tracker, its outbox on disk, and the delivery to a server."""

from uvar_tune.tracking.outbox import Outbox, run_ids
from uvar_tune.tracking.tracker import (
    CLOSE_TIMEOUT_SEC,
    STOP_TIMEOUT_SEC,
    BufferedRunLogger,
    MLflowTracker,
    NullTracker,
    RunLogger,
    Tracker,
)

__all__ = [
    "CLOSE_TIMEOUT_SEC",
    "STOP_TIMEOUT_SEC",
    "BufferedRunLogger",
    "MLflowTracker",
    "NullTracker",
    "Outbox",
    "RunLogger",
    "Tracker",
    "run_ids",
]
