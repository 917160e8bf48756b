"""MLflow as a view of a study: the sink, its spool on disk, and the delivery to a server."""

from uvar_tune.tracking.outbox import Outbox, known_runs
from uvar_tune.tracking.run_logger import BufferedRunLogger, RunLogger
from uvar_tune.tracking.tracker import CLOSE_SEC, STOPPED_SEC, MLflowTracker

__all__ = ["CLOSE_SEC", "STOPPED_SEC", "MLflowTracker", "Outbox", "RunLogger", "BufferedRunLogger", "known_runs"]
