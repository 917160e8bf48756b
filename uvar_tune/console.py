"""Lines of progress: follows the records that workers append to, and says every few seconds where each stands."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from pathlib import Path
from typing import Any

from uvar_tune.tracking.metrics_log import read_records

logger = logging.getLogger(__name__)

_EVERY_SEC = 10.0


class LogFollower:
    """Says, about every 10 s, images seen, loss and time left of what is being followed (as a context: a thread)."""

    def __init__(self):
        self._lock = threading.Lock()
        self._followed: dict[str, _Followed] = {}
        self._stop = threading.Event()

    def follow(self, name: str, record: Path, images: int) -> None:
        """Follow ``record`` from its present end; ``images`` is where the work ends."""
        with self._lock:
            self._followed[name] = _Followed(name, record, images)

    def forget(self, name: str) -> None:
        """Say what is left to say of it, and no more."""
        with self._lock:
            followed = self._followed.pop(name, None)
            for line in followed.said() if followed else ():
                logger.info(line)

    @contextlib.contextmanager
    def following(self, name: str, record: Path, images: int):
        """Follow one record for the length of a ``with`` block."""
        self.follow(name, record, images)
        try:
            with self:
                yield
        finally:
            self._tick()
            self.forget(name)

    def __enter__(self):
        self._stop.clear()
        self._thread = threading.Thread(target=self._loop, name="progress", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _loop(self) -> None:
        while not self._stop.wait(_EVERY_SEC):
            self._tick()

    def _tick(self) -> None:
        with self._lock:
            for followed in self._followed.values():
                for line in followed.news():
                    logger.info(line)


class _Followed:
    def __init__(self, name: str, record: Path, images: int):
        self.name, self.record, self.images = name, record, images
        self.offset = record.stat().st_size if record.exists() else 0
        self.began = time.time()

    def said(self) -> list[str]:
        return self._said(self._records())

    def news(self) -> list[str]:
        records = self._records()
        lines = self._said(records)
        points = [record for record in records if record.get("kind") == "metrics" and "loss/total" in record["values"]]
        if points:
            last = points[-1]
            seen, rate = last["images"], last["values"].get("images_per_sec", 0.0)
            left = f", {(self.images - seen) / rate:.0f} s left" if rate > 0 else ""
            lines.append(
                f"  {self.name}: {seen:,}/{self.images:,} images, loss {last['values']['loss/total']:.4f}, "
                f"{rate:,.0f} images/s{left}"
            )
        return lines

    def _records(self) -> list[dict[str, Any]]:
        records, self.offset = read_records(self.record, self.offset)
        return records

    def _said(self, records: list[dict[str, Any]]) -> list[str]:
        return [f"  {self.name}: {record['text']}" for record in records if record.get("kind") == "log"]
