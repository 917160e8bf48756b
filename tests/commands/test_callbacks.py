"""Study callbacks: notified of every attempt of a real search, in order."""

from __future__ import annotations

from tests.helpers.search_cases import details, ended, scored, study_config
from uvar_tune.commands.callbacks import CallbackList, NotifyingRunner
from uvar_tune.commands.phases import SearchWork
from uvar_tune.search.study import Search
from uvar_tune.specs import OutcomeKind, StudyCallbacks, crash


class Recorder(StudyCallbacks):
    """Keeps what it is notified of."""

    def __init__(self):
        self.events = []

    def on_trial_start(self, number, phase, parameters):
        self.events.append(("start", number, phase, "loss.lambda_1" in parameters))

    def on_rung(self, number, images, value):
        self.events.append(("rung", number, images, value))

    def on_trial_end(self, number, phase, outcome, value):
        self.events.append(("end", number, outcome, value))


class Runner:
    """Runs the work as the tuner does, without training: a score, a prune, a crash that is retried."""

    concurrent = None

    def run(self, work, concurrent):
        self.concurrent = concurrent
        number = work.ask().number
        work.report(number, 6400, 3.0)
        work.complete(number, scored(2.0, details(fid=2.0)))
        work.prune(work.ask().number, ended("diverged", details()))
        number = work.ask().number
        assert work.crashed(number, crash("OSError", "worker lost"))
        assert work.ask().number == number and work.remaining() >= 0 and work.key(number) == number


def test_attempts_reach_every_callback_in_order(journal):
    first, second = Recorder(), Recorder()
    rungs = {"rungs": [6400], "pruner": "median"}
    work = SearchWork(Search(study_config(trials=4, **rungs), journal))
    runner = NotifyingRunner(Runner(), CallbackList([first, second]))
    runner.run(work, 2)
    assert runner.concurrent == 2 and first.events == second.events
    assert first.events == [
        ("start", 0, "trial", True),
        ("rung", 0, 6400, 3.0),
        ("end", 0, OutcomeKind.COMPLETE, 2.0),
        ("start", 1, "trial", True),
        ("end", 1, OutcomeKind.DIVERGED, None),
        ("start", 2, "trial", True),
        ("end", 2, OutcomeKind.CRASHED, None),
        ("start", 2, "trial", True),
    ]
