"""A study of two short trials that tests of faults disturb, and what must hold of it afterwards."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import psutil

from tests.helpers.commands import TINY

STUDY = {"trials": 2, "startup_trials": 2}
TRAINING = {"images": 6400}
RUN = {"checkpoint_images": 640, "log_images": 64, "max_concurrent": 1}


def records(directory: Path, number: int = 0) -> list[dict]:
    path = directory / "trials" / f"{number:05d}" / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def images_seen(directory: Path, number: int) -> int:
    return max((record["images"] for record in records(directory, number) if "images" in record), default=0)


def wait_until(condition, process: subprocess.Popen | None = None, timeout: float = 240.0) -> None:
    """Wait for a condition, for no longer than ``timeout`` seconds and not beyond the end of ``process``."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert process is None or process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "it did not come so far"
        time.sleep(0.05)


def values(
    root: Path, name: str, trials: int = 2, url: str | None = None, images: int = TRAINING["images"]
) -> list[float]:
    """The value of each trial, each stored once and complete (in its journal file, or at ``url``)."""
    import optuna

    storage = url or optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(root / name / "optuna.journal"))
    )
    study = optuna.load_study(study_name=name, storage=storage)
    assert [trial.number for trial in study.trials] == list(range(trials))
    assert all(trial.state.name == "COMPLETE" for trial in study.trials)
    for number in range(trials):  # a step that was computed again is not recorded twice
        seen = [
            record["images"]
            for record in records(root / name, number)
            if record["kind"] == "metrics" and "loss/total" in record["values"]
        ]
        assert seen == sorted(set(seen)) and seen[-1] == images
    return [trial.value for trial in study.trials]


def alone(root: Path, name: str, images: int = TRAINING["images"], **study) -> list[float]:
    """The values of the study's trials, attempted in this process one after the other: no Ray, no server, no disturbance."""
    work, callbacks = in_this_process(root, {**STUDY, **study, "name": name}, {"images": images}, RUN)
    found = []
    while (proposal := work.ask()) is not None:
        outcome = attempt(callbacks.spec(proposal))
        work.complete(proposal.number, outcome)
        found.append(outcome.value)
    return found


def in_this_process(root: Path, study: dict, training: dict, run: dict):
    """(the search of the small study with these settings, what makes the specs of its trials), its assets made in ``root``."""
    from uvar_tune.commands.phases import SearchWork
    from uvar_tune.config.schema import Config
    from uvar_tune.ray_backend.tuner import TrialCallbacks, TuneRunner
    from uvar_tune.search.study import Search
    from uvar_tune.study_dir import StudyDirectory
    from uvar_tune.trial.assets import prepare

    config = Config.model_validate(
        {
            **TINY,
            "study": {**TINY["study"], **study},
            "training": {**TINY["training"], **training},
            "run": {**run, "root": str(root)},
        }
    )
    files = StudyDirectory(root, config.study.name)
    files.create()
    assets = prepare(config, files.cache, files.directory / "prepare.jsonl")
    work = SearchWork(Search(config, files.storage_url(config)))
    return work, TrialCallbacks(TuneRunner(config, files, None, None, None, assets), work)


def attempt(spec, report=lambda rung: None, stop=None):
    """Run an attempt in this process."""
    from uvar_tune.trial.trial import RankContext, run_attempt

    return run_attempt(spec, RankContext(report=report, stop_requested=stop))


def interruption(directory: Path, number: int, began: float) -> tuple[int, float]:
    """(images computed again, seconds from ``began`` to the first step beyond what had been reached) of the last time that a
    trial was continued; ``began`` counts since 1970, as its record does."""
    story = records(directory, number)
    at = max(index for index, record in enumerate(story) if record["kind"] == "resumed")
    reached = max(record["images"] for record in story[:at] if record["kind"] == "metrics")
    beyond = next(record for record in story[at:] if record["kind"] == "metrics")
    return reached - story[at]["images"], beyond["time"] - began


def crashes(text: str) -> list[str]:
    """The attempts that the sweep reported as crashed, in order, without their reasons."""
    return re.findall(r"(attempt \d+) crashed: ", text)


def processes(title: str, of: int) -> list[psutil.Process]:
    """The descendants of a process whose title contains ``title``, oldest first."""
    found = [child for child in psutil.Process(of).children(recursive=True) if title in " ".join(_title(child))]
    return sorted(found, key=lambda child: child.pid)


def train_workers(process: subprocess.Popen) -> list[psutil.Process]:
    return processes("RayTrainWorker", process.pid)


def _title(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def kill(victims: list[psutil.Process]) -> None:
    """kill -9, and wait until they are gone."""
    for victim in victims:
        with contextlib.suppress(psutil.NoSuchProcess):  # it went with another of them
            victim.kill()
    assert not living(victims)


def living(those: list[psutil.Process], timeout: float = 60.0) -> list[psutil.Process]:
    """Which of them still run after a while; one that has ended, and that nobody has asked about yet, does not."""
    deadline = time.monotonic() + timeout
    while (left := [one for one in those if _runs(one)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def kill_group(process: subprocess.Popen) -> None:
    """kill -9 of the sweep; its Ray follows when it notices."""
    children = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    living(children)


def recorded_rows(directory: Path, number: int) -> set[tuple[str, int]]:
    """(key, step) of every finite value in a trial's metrics log, as MLflow is to have it; of scales the last curve."""
    from uvar_tune.tracking.metric_names import metric_key, scale_of

    return {
        (metric_key(key), scale_of(key) or record["images"])
        for record in records(directory, number)
        if record["kind"] == "metrics"
        for key, value in record["values"].items()
        if math.isfinite(float(value))
    }


def metric_rows(database: Path, trial: str) -> list[tuple[str, int]]:
    """(key, step) of every metric row of a trial's run in MLflow's own database, fidelity profiles apart."""
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(
            "select m.key, m.step from metrics m join tags t on t.run_uuid = m.run_uuid where t.key = 'uvar.trial' and t.value = ? "
            "and m.key not like 'profile%'",
            (trial,),
        ).fetchall()
