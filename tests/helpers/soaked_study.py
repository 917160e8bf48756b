"""A study whose processes are killed again and again, and what must hold of it at the end, whatever was killed when."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import optuna
import psutil
import yaml

from tests.helpers.commands import TINY, CommandLine, environment
from tests.helpers.faulty_study import RUN, TRAINING, metric_rows, values
from uvar_tune.tracking.metrics_log import read_records

SEED = int(os.environ.get("UVAR_SOAK_SEED", 0))
TITLES = {
    "worker": "ray::RayTrainWorker",
    "controller": "ray::TrainController",
    "driver": "ray::ImplicitFunc",
    "gcs": "gcs/gcs_server",
    "raylet": "raylet/raylet",
}
_MARK = "UVAR_SOAK_MARK"


@dataclass(frozen=True)
class Moment:
    """Where an unfinished trial stood when something was killed: its attempt, its newest checkpoint (0: none), in images."""

    number: int
    attempt: int
    checkpoint: int


class SoakedStudy:
    """One study; `start` is the same command each time. What it starts carries a mark in its environment, so that the
    processes of this study are known among all others, whoever their parent is by then.

    Args:
        folder: of the space file and the sweep's output.
        run: of the section `run`.
    """

    def __init__(self, cli: CommandLine, root: Path, folder: Path, name: str, trials: int = 2, **run):
        self.name, self.trials, self.directory = name, trials, root / name
        self._root, self._cli, self._mark = root, cli, uuid.uuid4().hex
        self._space, self._output = folder / f"{name}.yaml", folder / f"{name}.log"
        study = {**TINY["study"], "name": name, "trials": trials, "startup_trials": trials}
        self._space.write_text(
            yaml.safe_dump(
                {
                    **TINY,
                    "study": study,
                    "training": {**TINY["training"], **TRAINING},
                    "run": {**RUN, "root": str(root), **run},
                }
            )
        )
        self._moments: list[Moment] = []

    @property
    def total_images(self) -> int:
        return self.trials * TRAINING["images"]

    @property
    def text(self) -> str:
        """What all sweeps of this study have said."""
        return self._output.read_text()

    def start(self) -> subprocess.Popen:
        with self._output.open("a") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "uvar_tune.sweep", self._space],
                cwd=self._cli.cwd,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment(**self._cli.changes, **{_MARK: self._mark}),
            )

    def finish(self, sweep: subprocess.Popen | None = None) -> None:
        """Run to the end: exit code 0, and no process left."""
        code = (sweep or self.start()).wait(timeout=3600)
        assert code == 0, self.text
        self.vanish()

    def images(self) -> int:
        """Images seen so far, over all trials."""
        return sum(
            max((record["images"] for record in self.record(number) if record["kind"] == "metrics"), default=0)
            for number in range(self.trials)
        )

    def record(self, number: int) -> list[dict]:
        return read_records(self.directory / "trials" / f"{number:05d}" / "metrics.jsonl")[0]

    def processes(self, title: str = "") -> list[psutil.Process]:
        """Of this study, those with ``title`` in their command line; the oldest first."""
        found = []
        for process in psutil.process_iter():
            try:
                if title in " ".join(process.cmdline()) and process.environ().get(_MARK) == self._mark:
                    found.append(process)
            except psutil.Error:
                continue
        return sorted(found, key=lambda process: process.pid)

    def kill(self, victim: psutil.Process) -> None:
        """kill -9; the progress of each unfinished trial is noted first (it can only get further)."""
        self._moments += [moment for number in range(self.trials) if (moment := self._stand(number))]
        victim.kill()

    def vanish(self) -> None:
        """Wait until no process of the study is left."""
        deadline = time.monotonic() + 300
        while left := self.processes():
            assert time.monotonic() < deadline, f"{self.name}: still there: {[process.cmdline() for process in left]}"
            time.sleep(0.2)

    def check(self, expected: list[float], most_crashes: int) -> None:
        """No trial and no record twice, the values of an undisturbed study, what was in flight continued, MLflow's rows once.

        Args:
            most_crashes: of attempts that may have ended from outside.
        """
        assert values(self._root, self.name, self.trials) == expected
        crashes = [
            attempt["message"]
            for trial in self._stored()
            for attempt in trial.user_attrs["attempts"]
            if "reason" in attempt
        ]
        assert len(crashes) <= most_crashes, crashes
        for moment in self._moments:
            self._check_continued(moment)
        if "uvar-tune sync" in self.text:  # a machine so busy that MLflow did not catch up: as the message says
            synced = self._cli("sync", "--study", self.name, "--root", self._root)
            assert synced.returncode == 0, synced.stdout + synced.stderr
        for number in range(self.trials):
            recorded = {
                (key, record["images"])
                for record in self.record(number)
                if record["kind"] == "metrics"
                for key in record["values"]
            }
            rows = metric_rows(self._root / "mlflow.db", f"{self.name}/{number}")
            assert recorded <= set(rows) and len(rows) == len(set(rows)), f"{self.name}/{number} in MLflow"

    def repeated(self) -> list[int]:
        """Images that each continued attempt computed again."""
        found = []
        for number in range(self.trials):
            story = self.record(number)
            for at, record in enumerate(story):
                if record["kind"] == "resumed":
                    reached = max(one["images"] for one in story[:at] if one["kind"] == "metrics")
                    found.append(max(0, reached - record["images"]))
        return found

    def _stored(self) -> list[optuna.trial.FrozenTrial]:
        backend = optuna.storages.journal.JournalFileBackend(str(self.directory / "optuna.journal"))
        return optuna.load_study(study_name=self.name, storage=optuna.storages.JournalStorage(backend)).trials

    def _stand(self, number: int) -> Moment | None:
        trial, story = self.directory / "trials" / f"{number:05d}", self.record(number)
        if not story or (trial / "outcome.json").exists():
            return None
        whole = [
            int(path.parent.name) for path in trial.glob("checkpoints/*/manifest.json") if path.parent.name.isdigit()
        ]
        return Moment(number, story[-1]["attempt"], max(whole, default=0))

    def _check_continued(self, moment: Moment) -> None:
        """A later attempt that trained began where the checkpoint was, or further on."""
        later = [record for record in self.record(moment.number) if record["attempt"] > moment.attempt]
        if moment.checkpoint and any("loss/total" in record.get("values", {}) for record in later):
            first = next(record for record in later if record["kind"] in ("resumed", "metrics"))
            assert first["kind"] == "resumed" and first["images"] >= moment.checkpoint, (moment, first)
