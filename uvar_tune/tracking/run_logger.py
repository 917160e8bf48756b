"""What is told of a study, as operations of its outbox."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from uvar_tune.tracking.outbox import Outbox

_LONGEST_PARAM = 6000  # characters


class RunLogger:
    """A study's parent run and its trials' child runs, told one operation after the other.

    Args:
        spool: of the study; paths are stored relative to where it lies.
    """

    def __init__(self, spool: Outbox):
        self._spool = spool

    def start_study(self, params: dict[str, Any], tags: dict[str, Any], at: float | None = None) -> None:
        """Make or find the parent run. ``at``, here and below: when it happened (s since 1970), if not now."""
        self._put("study", at, params=_texts(params), tags=_texts(tags))

    def watch_trial(
        self,
        number: int | str,
        directory: str | Path,
        params: dict[str, Any],
        tags: dict[str, Any],
        at: float | None = None,
    ) -> None:
        """Make or find the trial's run and follow its record and samples until `finish_trial`."""
        self._put(
            "watch",
            at,
            number=number,
            directory=self._spool.relative(directory),
            params=_texts(params),
            tags=_texts(tags),
        )

    def finish_trial(
        self,
        number: int | str,
        status: str,
        metrics: dict[str, float] | None = None,
        params: dict[str, Any] | None = None,
        at: float | None = None,
    ) -> None:
        """End the trial's run (FINISHED, FAILED, KILLED).

        Args:
            metrics: those of them that its record lacks are added.
            params: what only the trial itself has decided, as the CFG scale of a profile.
        """
        self._put("finish", at, number=number, status=status, metrics=metrics, params=_texts(params or {}))

    def study_metrics(self, values: dict[str, float]) -> None:
        """Values of the study as a whole; one that the run shows already is not sent again."""
        self._put("metrics", None, values=values)

    def artifact(self, number: int | str | None, path: str | Path, folder: str) -> None:
        """A file, or a directory under its own name, for the run of a trial (None: of the study)."""
        self._put("artifact", None, number=number, path=self._spool.relative(path), folder=folder)

    def finish_study(self, status: str, at: float | None = None) -> None:
        """End the parent run."""
        self._put("end", at, status=status)

    def _put(self, kind: str, at: float | None, **fields: Any) -> None:
        """Take one operation."""
        raise NotImplementedError


class BufferedRunLogger(RunLogger):
    """Operations in a list, for an outbox that is written anew."""

    def __init__(self, spool: Outbox):
        super().__init__(spool)
        self.operations: list[dict[str, Any]] = []

    def _put(self, kind: str, at: float | None, **fields: Any) -> None:
        self.operations.append({"op": kind, "time": time.time() if at is None else at, **fields})


def _texts(values: dict[str, Any]) -> dict[str, str]:
    return {
        key: (json.dumps(value) if isinstance(value, (list, tuple, dict)) else str(value))[:_LONGEST_PARAM]
        for key, value in values.items()
    }
