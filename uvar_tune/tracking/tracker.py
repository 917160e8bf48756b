"""MLflow as a view of a study, fed by one background thread of the driver.

What is to be told is first appended to the spool on disk, by the caller; the thread delivers from there. So nothing here
blocks or raises into the caller, a server that is down costs nothing but its own picture, and what a dead driver left is
delivered by the next one, or by `uvar-tune sync`.
"""

from __future__ import annotations

import logging
import os
import shlex
import threading
import time
from pathlib import Path
from typing import Any

from uvar_tune.errors import first_line
from uvar_tune.io.uri import redact_url
from uvar_tune.tracking.delivery import Away, Delivery
from uvar_tune.tracking.mlflow_client import Server
from uvar_tune.tracking.outbox import STUDY, Outbox
from uvar_tune.tracking.run_logger import RunLogger

logger = logging.getLogger(__name__)

CLOSE_SEC, STOPPED_SEC = 60.0, 15.0  # for what is not delivered yet as a command ends; whoever stops one waits for less
_EVERY_SEC, _LONGEST_SEC = 5.0, 30.0  # between two looks at the records; between two tries of a server that is away


class MLflowTracker(RunLogger):
    """A study's parent run and its trials' child runs.

    Args:
        tracking_uri: of the server or database; credentials in it are never shown or stored.
        artifact_root: where artifacts lie when the store is a database (a server has a place of its own).
        spool_dir: ``run.root/NAME/mlflow``; several sinks may share it, one of them delivers.
    """

    def __init__(
        self, *, tracking_uri: str, experiment: str, study: str, artifact_root: str | Path, spool_dir: str | Path
    ):
        self._uri, self._experiment, self._study = tracking_uri, experiment, study
        super().__init__(Outbox(spool_dir))
        self._artifact_root = Path(artifact_root)
        self._wake, self._closing, self._stopped = threading.Event(), threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._away = self._full = False

    def run_id(self, number: int | str | None) -> str | None:
        """The id of a run (None: the study's), as soon as the server has given it."""
        return self._spool.load()["runs"].get(STUDY if number is None else str(number))

    def close(self, timeout_sec: float = CLOSE_SEC) -> bool:
        """Deliver what can be delivered in this time (a server that is away is tried once more); whether nothing is left."""
        if self._thread is None and not any(self._spool.unsent()):
            return True
        self._begin()
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout_sec)
        self._stopped.set()
        self._wake.set()
        operations, records = self._spool.unsent()
        if operations or records:
            same = " and the same MLFLOW_TRACKING_URI" if "MLFLOW_TRACKING_URI" in os.environ else ""
            root = shlex.quote(str(self._spool.directory.parent.parent))
            logger.info(
                f"MLflow: {operations} operations and the records of {records} trials are kept and not sent; later, by "
                f"`uvar-tune sync --study {self._study} --root {root}`{same}"
            )
        return not (operations or records)

    def _put(self, kind: str, at: float | None, **fields: Any) -> None:
        refused = self._spool.put({"op": kind, "time": time.time() if at is None else at, **fields})
        if refused and not self._full:
            logger.info(f"MLflow: {self._spool.directory} cannot be written ({refused}); operations wait in memory")
        self._full = refused is not None
        self._begin()
        self._wake.set()

    def _begin(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._loop, name="mlflow", daemon=True)
            self._thread.start()

    def _loop(self) -> None:
        delivery, pause_sec = None, 1.0
        while not self._stopped.is_set():
            closing = self._closing.is_set()  # read first: what came before it is seen by this round
            self._wake.clear()
            try:
                if self._spool.hold():
                    delivery = delivery or Delivery(
                        self._spool, Server(self._uri, self._experiment, self._artifact_root), self._study
                    )
                    self._spool.flush()
                    delivery.operations(self._stopped.is_set)
                    delivery.records(self._stopped.is_set)
                    self._back()
                    pause_sec = 1.0
                    if closing and not any(self._spool.unsent()):
                        break
                    self._wake.wait(0.1 if closing else _EVERY_SEC)
                elif closing and not any(self._spool.unsent()):
                    break  # another sink of this study has delivered it
                else:
                    self._wake.wait(0.5)
            except (
                Exception
            ) as reason:  # also a record that cannot be read just now: this thread must not end before the study
                delivery = None
                self._gone(reason)
                if closing:
                    break
                self._closing.wait(pause_sec)
                pause_sec = min(2 * pause_sec, _LONGEST_SEC)
        self._spool.release()

    def _gone(self, reason: Exception) -> None:
        if not self._away:
            what = "does not answer" if isinstance(reason, Away) else f"cannot be told for now: {type(reason).__name__}"
            logger.info(
                f"MLflow at {redact_url(self._uri)} {what} ({first_line(reason)}); the work goes on, and what it misses is kept "
                "and sent later"
            )
        self._away = True

    def _back(self) -> None:
        if self._away:
            logger.info(f"MLflow at {redact_url(self._uri)} answers again; it has been told what it missed")
        self._away = False
