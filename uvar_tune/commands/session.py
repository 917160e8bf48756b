"""The life cycle that a study, a final run and the training of a tokenizer share."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from uvar_tune import provenance
from uvar_tune.config.schema import Config
from uvar_tune.console import CpuTimeMeter, LogFollower
from uvar_tune.errors import ConfigError, InfrastructureError
from uvar_tune.io.disk import raise_on_disk_full
from uvar_tune.specs import Assets, TrialOutcome, WorkerGroupSpec
from uvar_tune.study_dir import StudyDirectory
from uvar_tune.tracking import CLOSE_TIMEOUT_SEC, STOP_TIMEOUT_SEC, Tracker
from uvar_tune.tracking.parameters import datasets, provenance_tags

logger = logging.getLogger(__name__)


class RunSession:
    """One run of a command in its directory: lock, tracker, Ray and shared artifacts, each released on every way out.

    As a context manager it creates the directory, holds its lock and turns any error caused by a full disk into an
    `InfrastructureError`. On exit it sends the final status to the tracker: `status` after success, KILLED after Ctrl-C
    or an `InfrastructureError` (the same command continues), FAILED after any other exception. A new directory is
    removed again if the input was invalid.

    Args:
        config: of the run.
        files: its directory.
        tracker: used instead of the MLflow tracker of the directory.

    Attributes:
        status: FINISHED, unless the run sets another one.
        follower: logs the progress of other processes.
        shutdown: the signal handlers, while `ray` is entered.
        concurrent_trials: how many trials the cluster can hold, while `ray` is entered.
        cpu_meter: measures this machine's processes, while `ray` is entered.
    """

    def __init__(self, config: Config, files: StudyDirectory, *, tracker: Tracker | None = None):
        self.config, self.files, self.tracker = config, files, tracker
        self.status, self.follower, self.cpu_meter = "FINISHED", LogFollower(), CpuTimeMeter()
        self._tracking = False
        self._resources = contextlib.ExitStack()

    def __enter__(self) -> RunSession:
        self._is_new = not self.files.directory.exists()
        self.files.create()
        with contextlib.ExitStack() as resources:
            resources.enter_context(self.files.lock())
            resources.enter_context(raise_on_disk_full(self.files.directory))
            resources.push(self._end_tracking)
            self._resources = resources.pop_all()
        return self

    def __exit__(self, error_type, error, traceback) -> bool | None:
        if isinstance(error, KeyboardInterrupt):
            logger.info("stopped; checkpoints are kept. The same command continues.")
        if self._is_new and isinstance(error, ConfigError):
            self.files.remove_if_unused()
        return self._resources.__exit__(error_type, error, traceback)

    def start_tracking(self, params: dict[str, Any], tags: dict[str, Any] | None = None) -> None:
        """Begin the run at the tracker.

        Args:
            params: of the run.
            tags: in addition to those that name commit and machine.
        """
        self.tracker = self.tracker or self.files.open_tracker()
        self._tracking = True
        self.tracker.start_study(params=params, tags={**provenance_tags(provenance.origin()), **(tags or {})})

    def _end_tracking(self, error_type, error, _traceback) -> None:
        if not self._tracking:
            return
        resumable = isinstance(error, (KeyboardInterrupt, InfrastructureError))
        self.tracker.finish_study(self.status if error is None else "KILLED" if resumable else "FAILED")
        self.tracker.close(STOP_TIMEOUT_SEC if isinstance(error, KeyboardInterrupt) else CLOSE_TIMEOUT_SEC)

    @contextlib.contextmanager
    def ray(self) -> Iterator[None]:
        """Connect to the cluster or start a local Ray, and handle signals, for the duration of a ``with`` block.

        Raises:
            ConfigError: no cluster answers, it can never hold one trial, or a node does not share `run.root`.
        """
        from uvar_tune.ray_backend.capacity import max_concurrent_trials
        from uvar_tune.ray_backend.cluster import check_shared_filesystem, ray_cluster
        from uvar_tune.ray_backend.graceful_stop import GracefulShutdown

        with self.cpu_meter, ray_cluster() as self._lost_ray, GracefulShutdown(self._lost_ray) as self.shutdown:
            self.concurrent_trials = max_concurrent_trials(self.config)
            with self._capacity_monitor():
                check_shared_filesystem(self.files.root)
            yield

    def run_as_task(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of ``function(*arguments)``, run on a node that has the resources of a worker."""
        from uvar_tune.ray_backend.cluster import run_as_task

        with self._capacity_monitor():
            return run_as_task(self.config, function, *arguments)

    def prepare_assets(self) -> Assets:
        """The artifacts that all trials share, built where they are missing; progress is logged."""
        from uvar_tune.trial.assets import prepare

        log = self.files.directory / "prepare.jsonl"
        with self.follower.following("prepare", log, self.config.tokenizer.images):
            assets = self.run_as_task(prepare, self.config, self.files.cache, log)
        if self._tracking:
            self.tracker.log_datasets(datasets(self.config, assets.data_sha256, assets.facts.get("images", {})))
        return assets

    def run_worker_group(
        self, spec: WorkerGroupSpec, name: str, images: int, loop: Callable | None = None
    ) -> TrialOutcome:
        """Run one worker group to its end; progress is logged.

        Args:
            spec: what the workers run.
            name: begins each line of progress.
            images: number of training images at which the work ends.
            loop: the training loop of each worker; a trial's by default.

        Raises:
            KeyboardInterrupt: a stop was requested; the workers have saved a checkpoint.
        """
        from uvar_tune.ray_backend.trainer import run_worker_group

        log = Path(spec.directory) / "metrics.jsonl"
        with self._capacity_monitor(), self.follower.following(name, log, images):
            return run_worker_group(spec, self.shutdown, loop)

    def _capacity_monitor(self):
        from uvar_tune.ray_backend.capacity import CapacityMonitor

        return CapacityMonitor(self.config.run, self._lost_ray.report)
