"""MLflow as a view of a study: the sink, its spool on disk, and the delivery to a server."""

from uvar_tune.tracking.sink.courier import MLflowSink
from uvar_tune.tracking.sink.spool import known_runs

__all__ = ["MLflowSink", "known_runs"]
