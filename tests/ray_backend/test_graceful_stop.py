"""What asks a study to end, and an attempt that was asked to: saved, not scored, gone on with as if nothing had been."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from tests.helpers.faulty_study import attempt, in_this_process, records
from uvar_tune.errors import ConfigError
from uvar_tune.ray_backend.graceful_stop import GracefulShutdown
from uvar_tune.specs import OutcomeKind

RUNG = 640
STUDY = {"trials": 1, "rungs": [RUNG], "rung_samples": 32, "pruner": "median"}


@pytest.fixture
def signals(log_lines):
    made = GracefulShutdown()  # not entered: no Ray runs here
    before = signal.signal(signal.SIGTERM, made._on_signal)
    yield made, log_lines
    signal.signal(signal.SIGTERM, before)


def test_duplicate_stop_counts_once(signals):
    """`timeout` signals its child and then the child's group."""
    made, said = signals

    def run() -> str:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        return "saved"

    assert made.run_blocking(run) == "saved" and made.stop_requested
    assert len(said) == 1 and "saves a checkpoint" in said[0]


def test_a_second_stop_does_not_wait(signals):
    made, _ = signals

    def run() -> None:
        signal.raise_signal(signal.SIGTERM)
        time.sleep(1.2)
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("it went on")

    with pytest.raises(KeyboardInterrupt):
        made.run_blocking(run)


def test_where_nothing_runs_the_program_ends_at_once(signals):
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)


def test_study_outside_the_main_thread_is_refused():
    """There Tune could only be ended by a signal whose default ends the whole process."""
    with ThreadPoolExecutor(1) as pool, pytest.raises(ConfigError, match="in the main thread of its process only"):
        pool.submit(GracefulShutdown().run_tune, lambda: pytest.fail("it ran")).result()


def test_handlers_and_environment_are_restored(monkeypatch):
    monkeypatch.delenv("TUNE_DISABLE_SIGINT_HANDLER", raising=False)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    made = GracefulShutdown()
    assert made.run_tune(lambda: signal.getsignal(signal.SIGUSR1)) is not before[2]
    made.__exit__()
    assert [signal.getsignal(number) for number in numbers] == before
    assert "TUNE_DISABLE_SIGINT_HANDLER" not in os.environ


def test_unreported_rung_is_scored_on_resume(root):
    """Asked to end in the very step of a rung, it saves and is gone; the rung is reported first of all the next time, once, and the
    trial ends with the value of one that was left alone."""
    reports: dict[str, list] = {"left": [], "asked": []}
    work, callbacks = in_this_process(root, {**STUDY, "name": "left"}, {}, {})
    left = attempt(callbacks.spec(work.ask()), report=reports["left"].append)
    work, callbacks = in_this_process(root, {**STUDY, "name": "asked"}, {}, {})
    spec, steps = callbacks.spec(work.ask()), iter(range(1, 100))
    asked = attempt(spec, report=reports["asked"].append, stop=lambda: next(steps) >= RUNG // 64)
    assert (asked.kind, asked.images) == (OutcomeKind.INTERRUPTED, RUNG) and not reports["asked"]
    assert [record["text"] for record in records(root / "asked") if record["kind"] == "log"] == [
        f"saved at {RUNG} images"
    ]
    again = attempt(replace(spec, attempt=2), report=reports["asked"].append)
    assert reports["asked"] == reports["left"] and [rung["images"] for rung in reports["left"]] == [RUNG]
    assert (again.kind, again.value) == (OutcomeKind.COMPLETE, left.value)
    story = [record for record in records(root / "asked") if record["kind"] == "metrics"]
    assert [record["images"] for record in story if "rung/fid" in record["values"]] == [RUNG]
