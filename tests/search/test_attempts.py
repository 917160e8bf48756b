"""Which crashes count as attempts."""

from __future__ import annotations

import pytest

from uvar_tune.search.attempts import crash_record, is_retried
from uvar_tune.specs import CrashReason, OutcomeKind, TrialOutcome


def crash_at(images: int) -> dict:
    """The record of an attempt that crashed with its newest checkpoint at this number of images."""
    return crash_record(TrialOutcome(kind=OutcomeKind.CRASHED, reason=CrashReason.PROCESS_LOST, images=images))


INTERRUPTED = {"started": 1.0, "ended": 2.0}


@pytest.mark.parametrize(
    ("attempts", "retried"),
    [
        ([crash_at(0)] * 2, True),
        ([crash_at(0)] * 3, False),
        ([crash_at(0), INTERRUPTED, crash_at(0), INTERRUPTED], True),
        ([crash_at(images) for images in (6400, 12800, 19200, 25600)], True),  # a host lost after each checkpoint
        ([crash_at(6400)] * 3, True),  # the first of them saved the checkpoint
        ([crash_at(6400)] * 4, False),
        ([crash_at(0), crash_at(6400), crash_at(6400), crash_at(6400)], False),
    ],
)
def test_only_crashes_without_progress_count(attempts, retried):
    assert is_retried(attempts, max_attempts=3) == retried
