"""A signal while `confirm` tunes the baseline: nothing is confirmed on a baseline that was tuned in part."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.helpers.search_cases import NARROW, details, run_to_end, scored, study_config
from uvar_tune.commands.callbacks import NotifyingRunner
from uvar_tune.commands.phases import Phases
from uvar_tune.errors import ConfigError
from uvar_tune.ray_backend.tuner import StudySearcher
from uvar_tune.specs import StudyCallbacks, crash
from uvar_tune.study_dir import StudyDirectory

RATE = "training.learning_rate"
SPACE = {
    **NARROW,
    RATE: {"role": "nuisance", "type": "float", "low": 1e-4, "high": 1e-2, "log": True, "baseline": 1e-3},
}


class SimulatedRunner:
    """Training simulated: each trial gets a score; a signal comes after some trials of the baseline's tuning."""

    def __init__(self, until: int | None):
        self.stop, self.ran, self._until = SimpleNamespace(stop_requested=False), [], until

    def run(self, work, concurrent):
        count = 0
        while not self.stop.stop_requested and (proposal := work.ask()) is not None:
            value = 5 + abs(proposal.values.get(RATE, 1e-3) - 5e-3)
            work.complete(proposal.number, scored(value, {**details(fid=value), "protocol": {"samples": 1}}))
            self.ran.append((work.phase, proposal.number))
            count += 1
            if work.phase == "baseline" and count == self._until:
                self.stop.stop_requested = True


@pytest.mark.parametrize("until", [1, 2, 3])
def test_the_same_command_continues(tmp_path, log_lines, until):
    config = study_config(space=SPACE, trials=5, confirm_replicates=4, run={"root": str(tmp_path)})
    files = StudyDirectory(tmp_path, "study")
    files.create()
    run_to_end(Phases(config, files).search())
    stopped, again = SimulatedRunner(until), SimulatedRunner(None)
    Phases(config, files).run("confirm", stopped, 1)
    assert stopped.ran == [("baseline", number) for number in range(until)]
    Phases(config, files).run("confirm", again, 1)
    assert again.ran[: 5 - until] == [("baseline", number) for number in range(until, 5)]
    assert {phase for phase, _ in again.ran[5 - until :]} == {"confirm"} and not any(
        "arms have changed" in text for text in log_lines
    )


def test_an_extended_study_is_confirmed_again(tmp_path, log_lines):
    config = study_config(space=SPACE, trials=3, confirm_replicates=4, run={"root": str(tmp_path)})
    files = StudyDirectory(tmp_path, "study")
    files.create()
    run_to_end(Phases(config, files).search())
    Phases(config, files).run("confirm", SimulatedRunner(None), 1)
    longer = config.with_values({"study.trials": 6})
    run_to_end(Phases(longer, files).search(), lambda proposal: 1.0 - proposal.number)
    runner = SimulatedRunner(None)
    Phases(longer, files).run("confirm", runner, 1)
    assert any("confirmed on fresh seeds, as confirm-2" in text for text in log_lines)
    assert {phase for phase, _ in runner.ran} == {"baseline", "confirm-2"}


def test_a_config_error_of_a_trial_ends_the_study(tmp_path):
    """It is not retried, and the trial resumes after the input was corrected."""
    config = study_config(trials=1, run={"root": str(tmp_path)})
    files = StudyDirectory(tmp_path, "study")
    files.create()

    class Runner:
        def run(self, work, concurrent):
            work.crashed(work.ask().number, crash("ConfigError", "data.path: no images"))

    with pytest.raises(ConfigError, match="^data.path: no images$"):
        Phases(config, files).run("search", NotifyingRunner(Runner(), StudyCallbacks()), 1)
    again = Phases(config, files).search().ask()
    assert (again.number, again.attempt) == (0, 2)


def test_nothing_begins_after_a_signal():
    work = SimpleNamespace(ask=lambda: pytest.fail("it was asked"))
    searcher = StudySearcher(work, 2, callbacks=None, stop_requested=lambda: True)
    assert searcher.suggest("a") == searcher.FINISHED
