"""MLflow as a view of a study: the sink, its spool on disk, and the delivery to a server."""

from uvar_tune.tracking.sink.courier import CLOSE_SEC, STOPPED_SEC, MLflowSink
from uvar_tune.tracking.sink.spool import Spool, known_runs
from uvar_tune.tracking.sink.telling import Telling, Told

__all__ = ["CLOSE_SEC", "STOPPED_SEC", "MLflowSink", "Spool", "Telling", "Told", "known_runs"]
