"""Delivering a study's outbox and records to a tracking server, each step repeatable without doubling anything.

A run is found by its id, else by its tags, else made. What a server shows already (parameters, metrics of the study) is
not sent again; of a trial's metrics it drops what it has.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from uvar_tune.tracking.content import InferencePointSearch, milliseconds, missing_points, new_pictures, new_points
from uvar_tune.tracking.outbox import STUDY, Outbox

logger = logging.getLogger(__name__)

_UPLOADS = 5  # tries of one file


class Away(Exception):
    """The server cannot be reached or does not work now: to be tried again."""


class Rejected(Exception):
    """The server refuses this for what it is: trying again is no use."""


class Server(Protocol):
    """What is asked of a tracking server; every method raises `Away` or `Rejected`."""

    name: str

    def exists(self, run_id: str) -> bool: ...
    def find(self, tags: dict[str, str]) -> list[str]: ...
    def make(self, name: str, tags: dict[str, str], time_ms: int) -> str: ...
    def delete(self, run_id: str) -> None: ...
    def shown(self, run_id: str) -> tuple[dict[str, str], dict[str, float]]: ...
    def batch(
        self, run_id: str, points: InferencePointSearch, params: dict[str, str], tags: dict[str, str]
    ) -> None: ...
    def status(self, run_id: str, status: str, time_ms: int) -> None: ...
    def upload(self, run_id: str, path: Path, folder: str) -> None: ...


class Delivery:
    """One connection's work: `operations`, then `records`, again and again; an `Away` out of either ends it."""

    def __init__(self, spool: Outbox, server: Server, study: str):
        self._spool, self._server, self._study = spool, server, study
        self._confirmed: set[str] = set()
        self._state = spool.load()
        self._state["root"] = self._state["root"] or _mark(spool)
        if self._state["server"] not in (None, server.name):
            logger.info(
                f"MLflow: {server.name} is another server than before; `uvar-tune sync --study {study} "
                "--rebuild` sends it what it lacks"
            )
            self._state |= {"runs": {}, "uncertain": []}
            for entry in self._state["trials"].values():
                entry |= {"offset": 0, "scored": [], "files": {}}
        self._state["server"] = server.name

    def operations(self, stop: Callable[[], bool]) -> None:
        """Deliver what the outbox holds, in order."""
        for operation, end in self._spool.after(self._state["outbox"]):
            if stop():
                return
            try:
                getattr(self, f"_on_{operation['op']}")(operation)
            except (
                Rejected,
                ValueError,
                TypeError,
                KeyError,
                AttributeError,
            ) as refusal:  # the rest: no operation of ours
                self._refused(operation, refusal)
            self._state["outbox"] = end
            self._spool.save(self._state)

    def records(self, stop: Callable[[], bool]) -> None:
        """Deliver what the records and sample folders of trials that are not done have gained."""
        for number, entry in self._state["trials"].items():
            if stop():
                return
            if not entry["done"]:
                self._follow(int(number) if number.isdigit() else number, entry, settled=False)

    # the operations, as `MLflowTracker` puts them

    def _on_study(self, operation) -> None:
        self._describe(self._run(None, operation["time"]), operation["params"], operation["tags"])

    def _on_watch(self, operation) -> None:
        number, at_ms = operation["number"], milliseconds(operation["time"])
        fresh = {"directory": operation["directory"], "offset": 0, "scored": [], "files": {}}
        self._state["trials"][str(number)] = {**fresh, **self._state["trials"].get(str(number), {}), "done": False}
        parent, run_id = self._run(None, operation["time"]), self._run(number, operation["time"])
        self._describe(run_id, operation["params"], operation["tags"])
        for each in (parent, run_id):
            self._server.status(each, "RUNNING", at_ms)
        config = self._spool.absolute(operation["directory"]) / "config.yaml"
        if config.exists():
            self._upload(run_id, config, "")

    def _on_finish(self, operation) -> None:
        number, entry = operation["number"], self._state["trials"].get(str(operation["number"]))
        run_id = self._run(number, operation["time"])
        if entry is not None:
            self._follow(number, entry, settled=True)
        directory = entry and self._spool.absolute(entry["directory"])
        points = missing_points(directory, operation["metrics"] or {}, operation["time"])
        self._describe(run_id, operation["params"], {}, points)
        self._server.status(run_id, operation["status"], milliseconds(operation["time"]))
        self._tidy(number)
        if entry is not None:
            self._state["trials"][str(number)] = {**entry, "done": True}

    def _on_metrics(self, operation) -> None:
        run_id = self._run(None, operation["time"])
        _, shown = self._server.recorded(run_id)
        values = {key: float(value) for key, value in operation["values"].items()}
        fresh = {key: value for key, value in values.items() if shown.get(key) != value}
        self._server.batch(
            run_id, [(key, value, milliseconds(operation["time"]), 0) for key, value in fresh.items()], {}, {}
        )

    def _on_artifact(self, operation) -> None:
        path = self._spool.absolute(operation["path"])
        if not path.exists():
            raise Rejected(f"{path} is gone")
        self._upload(self._run(operation["number"], operation["time"]), path, operation["folder"])

    def _on_end(self, operation) -> None:
        self._server.status(self._run(None, operation["time"]), operation["status"], milliseconds(operation["time"]))
        self._tidy(None)

    # the parts

    def _follow(self, number: int | str, entry: dict[str, Any], *, settled: bool) -> None:
        run_id = self._run(number, time.time())  # first: a run that was lost sets the offset back
        directory, scored = self._spool.absolute(entry["directory"]), list(entry["scored"])
        try:
            points, end = new_points(directory, entry["offset"], scored)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            entry["done"] = True
            self._spool.save(self._state)
            self._refused({"op": "record", "number": number}, Rejected(f"{directory / 'metrics.jsonl'}: {error!r}"))
            return
        files = new_pictures(directory / "samples", entry["files"], settled=settled)
        if end == entry["offset"] and not files:
            return
        try:
            self._server.batch(run_id, points, {}, {})
        except Rejected as refusal:
            self._refused({"op": "record", "number": number, "from": entry["offset"], "to": end}, refusal)
        entry |= {"offset": end, "scored": scored}
        self._spool.save(self._state)
        for path, mark in files:
            try:
                self._upload(run_id, path, "samples")
            except Rejected as refusal:
                self._refused({"op": "samples", "number": number}, refusal)
            entry["files"][path.name] = mark
            self._spool.save(self._state)

    def _run(self, number: int | str | None, at: float) -> str:
        """The run of a trial (None: of the study), made where it does not exist."""
        key, runs = STUDY if number is None else str(number), self._state["runs"]
        if key in self._confirmed:
            return runs[key]
        if key in runs and self._server.exists(runs[key]):
            self._confirmed.add(key)
            return runs[key]
        found = self._server.find(self._identity(number))
        run_id = found[0] if found else self._make(key, number, at)
        if key in runs:  # the server has lost the run it had
            self._state["trials"].get(key, {}).update(offset=0, scored=[], files={})
            logger.info(
                f"MLflow has lost the run of {'the study' if number is None else f'trial {number}'}: a new one; "
                f"`uvar-tune sync --study {self._study} --rebuild` sends it what it lacks"
            )
        runs[key] = run_id
        self._confirmed.add(key)
        self._spool.save(self._state)
        return run_id

    def _make(self, key: str, number: int | str | None, at: float) -> str:
        """A new run. Where the answer never comes, the run may have been made all the same: `_tidy` looks later."""
        tags, uncertain = self._identity(number), self._state["uncertain"]
        name = self._study if number is None else f"trial {number}" if isinstance(number, int) else number
        if number is not None:
            tags["mlflow.parentRunId"] = self._run(None, at)
        try:
            return self._server.make(name, tags, milliseconds(at))
        except Away:
            self._state["uncertain"] = sorted({*uncertain, key})
            self._spool.save(self._state)
            raise

    def _tidy(self, number: int | str | None) -> None:
        """Delete what a request that was answered too late has made beside the run."""
        key = STUDY if number is None else str(number)
        if key in self._state["uncertain"]:
            for spare in self._server.find(self._identity(number)):
                if spare != self._state["runs"][key]:
                    self._server.delete(spare)
            self._state["uncertain"].remove(key)

    def _identity(self, number: int | str | None) -> dict[str, str]:
        """The tags by which a run is known: study and trial, and where it first lay (names are unique below one run.root)."""
        which = {"uvar.study": self._study} if number is None else {"uvar.trial": f"{self._study}/{number}"}
        return {**which, "uvar.root": self._state["root"]}

    def _upload(self, run_id: str, path: Path, folder: str) -> None:
        """Upload; what fails again and again at a server that answers (too large for it) is given up, not waited for."""
        tries = self._state["tries"]
        try:
            self._server.upload(run_id, path, folder)
            tries.pop(str(path), None)
        except Away as reason:
            self._server.exists(run_id)
            tries[str(path)] = tries.get(str(path), 0) + 1
            self._spool.save(self._state)
            if tries[str(path)] < _UPLOADS:
                raise
            tries.pop(str(path))
            raise Rejected(f"{path}: {reason}") from None

    def _describe(
        self, run_id: str, params: dict[str, str], tags: dict[str, str], points: InferencePointSearch = ()
    ) -> None:
        """Parameters cannot change on a server: one that did (a study made longer) is told by a tag."""
        shown, _ = self._server.recorded(run_id) if params else ({}, {})
        fresh = {key: value for key, value in params.items() if key not in shown}
        changed = {f"uvar.changed.{key}": value for key, value in params.items() if shown.get(key, value) != value}
        self._server.batch(run_id, points, fresh, {**tags, **changed})

    def _refused(self, what: dict[str, Any], refusal: Exception) -> None:
        self._spool.reject(what, str(refusal))
        logger.info(
            f"MLflow refuses {what.get('op')}{'' if what.get('number') is None else ' of trial ' + str(what['number'])}: "
            f"{refusal} (kept in {self._spool.directory / 'rejected.jsonl'})"
        )


def _mark(spool: Outbox) -> str:
    """Of a study that has none yet: where it lies. It keeps its mark when it is moved."""
    return hashlib.sha256(str(spool.directory.absolute().parent).encode()).hexdigest()[:16]
