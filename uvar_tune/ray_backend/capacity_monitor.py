"""Nodes that are lost in mid-study: Ray waits for others without end and without a word; here it is said, and has an
end.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import ray

from uvar_tune.config.schema import Config
from uvar_tune.errors import InfrastructureError
from uvar_tune.ray_backend.cluster import asked, describe, fitting, node_resources
from uvar_tune.ray_backend.health import leave

logger = logging.getLogger(__name__)

_EVERY_SEC = 5.0


class CapacityMonitor:
    """While it lasts, says when the cluster no longer holds one trial, and when it does again.

    Args:
        give_up: told, with the reason, after `run.wait_resources_sec` without room for a trial; by default this process
            ends.
    """

    def __init__(self, config: Config, give_up: Callable[[InfrastructureError], None] = leave):
        self._config, self._give_up = config, give_up
        self._over = threading.Event()
        self._since: float | None = None  # without room for a trial

    def __enter__(self) -> CapacityMonitor:
        threading.Thread(
            target=self._watch, name="nodes", daemon=True
        ).start()  # not joined: a head that is lost does not answer
        return self

    def __exit__(self, *_) -> None:
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(_EVERY_SEC):
            try:
                why = self._look()
            except (
                OSError,
                RuntimeError,
                ray.exceptions.RayError,
            ):  # a line that nobody takes, a Ray that is about to end
                continue
            if why is not None and not self._over.is_set():
                return self._give_up(why)

    def _look(self) -> InfrastructureError | None:
        """Say what has changed; why there is no more to wait for."""
        wait_sec, before = self._config.run.wait_resources_sec, self._since
        if fitting(self._config, node_resources()) > 0:
            self._since = None
            if before is not None:
                logger.info(f"the cluster holds a trial again: {describe()}")
        elif before is None:
            self._since = time.monotonic()
            logger.info(
                f"waiting for nodes, {wait_sec:.0f} s at most: {asked(self._config)}; the cluster has {describe()}"
            )
        elif time.monotonic() - before > wait_sec:
            return InfrastructureError(
                f"{asked(self._config)}; the cluster has {describe()}, and no more came in {wait_sec:g} s "
                "(run.wait_resources_sec). The same command continues"
            )
        return None
