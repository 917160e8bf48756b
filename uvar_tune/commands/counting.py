"""Lines of progress for work that is counted in its own process."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

_EVERY_SEC = 5.0


def counting(text: str, total: int) -> Callable[[int, int], None]:
    """Says ``text: 0 of total`` at once; then, called with (done, of how many), every few seconds and at the end."""
    logger.info(f"  {text}: 0 of {total:,}")
    began = told_sec = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal told_sec
        now = time.monotonic()
        if done == total or now - told_sec > _EVERY_SEC:
            left = f", {(now - began) / done * (total - done):.0f} s left" if done < total else f", {now - began:.1f} s"
            logger.info(f"  {text}: {done:,} of {total:,}{left}")
            told_sec = now

    return tell
