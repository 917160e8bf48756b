"""The word by which a study that is to end tells its workers to save where they are, and end."""

from __future__ import annotations

import threading

import ray
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

_LOOK_SEC = 0.5


def stop_key() -> str:
    """Where the word of this job lies. To be asked while Ray runs: it would start one."""
    return f"uvar_tune/stop/{ray.get_runtime_context().get_job_id()}"


def set_stop_flag(key: str) -> None:
    """Tell every worker of a job, those included that are only just starting."""
    _internal_kv_put(key, b"1")


class StopFlagListener:
    """While it lasts, listens for the word beside the work, which so never waits for a head that does not answer.
    Called, it says whether the word was given.
    """

    def __init__(self):
        self._given, self._over = threading.Event(), threading.Event()

    def __enter__(self) -> StopFlagListener:
        self._key = stop_key()
        threading.Thread(
            target=self._listen, name="stop-word", daemon=True
        ).start()  # not joined: it may wait for the head
        return self

    def __exit__(self, *_) -> None:
        self._over.set()

    def __call__(self) -> bool:
        return self._given.is_set()

    def _listen(self) -> None:
        while not self._over.wait(_LOOK_SEC):
            try:
                given = _internal_kv_get(self._key)
            except (OSError, RuntimeError, ray.exceptions.RayError):  # a head that is away, a Ray that is about to end
                continue
            if given:
                return self._given.set()
