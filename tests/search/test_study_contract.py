"""What the search promises, on every storage alike."""

from __future__ import annotations

import math

import pytest
from optuna.trial import TrialState

from tests.helpers.search_cases import SPACE, Clock, bowl, details, ended, run_to_end, scored, study_config
from uvar_tune.config.loading import validate
from uvar_tune.config.space import searched_entries
from uvar_tune.errors import ConfigError
from uvar_tune.search import _optuna_compat as compat
from uvar_tune.search._optuna_compat import create_marked_trial
from uvar_tune.search.pruning import rung_values
from uvar_tune.search.study import Search
from uvar_tune.specs import CrashReason, crash

LOST, LOST_AGAIN = crash("OSError", "worker lost"), crash("OSError", "worker lost again")
LOW_MEMORY = crash(None, "8 of 8 GB", CrashReason.LOW_MEMORY)


class TestContract:
    @pytest.fixture
    def name(self, request) -> str:
        """A study of the test's own in the storage that all share."""
        return request.node.originalname[5:50]

    def opened(self, storage_url, name, **study) -> Search:
        return Search(study_config(name, **study), storage_url)

    def states(self, search) -> list[str]:
        return [trial.state.name for trial in search.study.get_trials(deepcopy=False)]

    def test_seed_decides_the_proposals(self, storage_url, name, journal):
        straight = run_to_end(self.opened(journal, name, trials=9, seed=3))
        again = []
        for total in (3, 6, 9):  # a driver that is stopped and continued twice
            again += run_to_end(self.opened(storage_url, name, trials=total, seed=3))
        assert again == straight and [proposal.number for proposal in again] == list(range(9))
        other = run_to_end(self.opened(storage_url, f"{name}-other", trials=3, seed=4))
        assert [proposal.values for proposal in other[1:]] != [proposal.values for proposal in straight[1:3]]

    def test_baseline_comes_first(self, storage_url, name):
        search = self.opened(storage_url, name, trials=3)
        baseline, second = search.ask(), search.ask()
        assert (baseline.number, baseline.kind, second.kind) == (0, "baseline", "search")
        assert baseline.values == {"loss.lambda_1": 0.0, "loss.lambda_2": 0.0, "model.depth": 2, "loss.perplexity": 3.0}
        stored = search.study.get_trials(deepcopy=False)
        assert stored[0].params == {} and stored[0].user_attrs["kind"] == "baseline"
        assert stored[1].params == {key: value for key, value in second.values.items() if key != "loss.perplexity"}

    def test_trial_of_a_dead_driver_is_retried_first(self, storage_url, name):
        first = self.opened(storage_url, name, trials=4)
        before = [first.ask() for _ in range(3)]
        first.complete(1, scored(7.0, details(fid=7.0)))
        second = self.opened(storage_url, name, trials=4)
        assert second.unfinished() == [0, 2] and not second.done() and second.remaining() == 3
        again = [second.ask() for _ in range(3)]
        assert second.remaining() == 0
        assert [proposal.number for proposal in again] == [0, 2, 3]
        for old, new in ((before[0], again[0]), (before[2], again[1])):
            assert (new.values, new.seeds, new.kind, new.attempt) == (old.values, old.seeds, old.kind, 2)
        assert second.ask() is None and not second.done()
        for proposal in again:
            second.complete(proposal.number, scored(1.0, details(fid=1.0)))
        assert second.done() and self.states(second) == ["COMPLETE"] * 4

    def test_interrupted_proposal_keeps_its_values(self, storage_url, name, journal):
        whole = self.opened(journal, name, trials=3)
        expected = [whole.ask() for _ in range(3)]
        torn = self.opened(storage_url, name, trials=3)
        torn.ask()
        create_marked_trial(
            torn.study, torn.storage, {"kind": "search"}
        )  # the driver died before the proposal was made
        resumed = self.opened(storage_url, name, trials=3)
        assert [resumed.ask().values for _ in range(3)] == [proposal.values for proposal in expected]

    def test_the_total_can_grow(self, storage_url, name):
        search = self.opened(storage_url, name, trials=2)
        assert len(run_to_end(search)) == 2 and search.done() and search.ask() is None
        larger = self.opened(storage_url, name, trials=5)
        assert not larger.done() and len(run_to_end(larger)) == 3 and larger.done()

    def test_outcomes_become_states(self, storage_url, name):
        search = self.opened(storage_url, name, trials=4, run={"max_attempts": 2})
        for _ in range(4):
            search.ask()
        search.complete(0, scored(4.0, details(fid=4.0)))
        search.prune(1, ended("diverged", {"message": "the loss is nan"}))
        search.prune(2, ended("out_of_memory"))
        assert search.crashed(3, LOST) and self.states(search)[3] == "RUNNING"
        assert search.ask().attempt == 2
        assert not search.crashed(3, LOST_AGAIN)
        assert self.states(search) == ["COMPLETE", "PRUNED", "PRUNED", "FAIL"] and search.done()
        stored = search.study.get_trials(deepcopy=False)
        assert [trial.values for trial in stored] == [[4.0], None, None, None]
        assert [trial.user_attrs.get("outcome") for trial in stored] == [None, "diverged", "out_of_memory", "crashed"]
        attempts = stored[3].user_attrs["attempts"]
        assert [(attempt["reason"], attempt["message"]) for attempt in attempts] == [
            ("error", "OSError: worker lost"),
            ("error", "OSError: worker lost again"),
        ]
        assert stored[0].user_attrs["scores"] == {"fid": 4.0}

    @pytest.mark.parametrize(
        ("reasons", "state", "outcome"),
        [
            ((LOW_MEMORY, LOW_MEMORY), "PRUNED", "out_of_memory"),
            ((LOW_MEMORY, LOST), "FAIL", "crashed"),
        ],
    )
    def test_repeated_low_memory_prunes_the_trial(self, storage_url, name, reasons, state, outcome):
        search = self.opened(storage_url, f"{name}-{outcome}", trials=1, run={"max_attempts": 2})
        for reason in reasons:
            search.ask()
            search.crashed(0, reason)
        [trial] = search.study.get_trials(deepcopy=False)
        assert self.states(search) == [state] and trial.user_attrs["outcome"] == outcome and search.done()

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_nan_and_infinity_are_no_scores(self, storage_url, name, value):
        search = self.opened(storage_url, f"{name}-{value}", trials=1)
        search.ask()
        with pytest.raises(ValueError, match="not"):
            search.complete(0, scored(value, details(fid=value)))
        assert self.states(search) == ["RUNNING"] and search.unfinished() == [0]

    def test_interrupted_attempts_are_no_crashes(self, storage_url, name):
        for attempt in (1, 2, 3, 4):  # four drivers that died
            search = self.opened(storage_url, name, trials=1, run={"max_attempts": 2})
            assert search.ask().attempt == attempt
        assert search.crashed(0, LOST)
        assert search.ask().attempt == 5

    def test_a_condition_holds_where_it_says(self, storage_url, name):
        proposals = run_to_end(self.opened(storage_url, name, trials=13, sampler="qmc"))[1:]
        for proposal in proposals:
            semantic = proposal.values["loss.reference"] == "semantic"
            assert ("loss.neighbours" in proposal.values) == semantic
        assert {proposal.values["loss.reference"] for proposal in proposals} == {"normal", "semantic"}

    def test_a_changed_direction_is_refused(self, storage_url, name):
        self.opened(storage_url, name)
        changed = study_config(name).with_values({"study.metric": "is"})
        with pytest.raises(ConfigError, match="is to minimize its metrics, this one is to maximize"):
            Search(changed, storage_url)

    def test_another_number_of_objectives_is_refused(self, storage_url, name):
        self.opened(storage_url, name)
        with pytest.raises(ConfigError, match="objectives"):
            self.opened(storage_url, name, further_metrics=["is"])

    def test_another_space_is_refused_with_the_difference(self, storage_url, name):
        self.opened(storage_url, name)
        narrower = {**SPACE, "loss.lambda_1": {**SPACE["loss.lambda_1"], "high": 5}}
        with pytest.raises(ConfigError, match="loss.lambda_1: high was 6.0, is 5.0"):
            self.opened(storage_url, name, space=narrower)

    def test_several_metrics_are_recorded_together(self, storage_url, name):
        search = self.opened(storage_url, name, trials=6, further_metrics=["is", "ece_token"])
        while (proposal := search.ask()) is not None:
            value = bowl(proposal)
            if proposal.number == 4:
                with pytest.raises(ValueError, match="lack ece_token"):
                    search.complete(4, scored(value, details(fid=value, **{"is": 3.0})))
                with pytest.raises(ValueError, match="not"):
                    search.complete(4, scored(value, details(fid=value, ece_token=math.nan, **{"is": 3.0})))
                search.prune(4, ended("diverged"))
            else:
                search.complete(
                    proposal.number, scored(value, details(fid=value, ece_token=0.1, **{"is": proposal.number}))
                )
        stored = search.study.get_trials(deepcopy=False)
        assert stored[3].values == [stored[3].user_attrs["scores"]["fid"], 3.0, 0.1] and stored[4].values is None
        assert search.done()

    def test_rungs_never_stop_the_baseline(self, storage_url, name):
        study = {"trials": 8, "pruner": "successive_halving", "rungs": [8000, 16000]}
        search = self.opened(storage_url, name, **study)
        for _ in range(4):
            search.ask()
        assert not search.report(1, 8000, 1.0)
        assert not search.report(0, 8000, 9.0)  # the worst of the two, but the baseline
        assert search.report(2, 8000, 5.0) and search.report(2, 8000, 0.0)  # reported again, nothing changes
        search.prune(2, ended("stopped"))
        assert search.report(3, 8000, 6.0)
        with pytest.raises(ValueError, match="no rung"):
            search.report(1, 8001, 1.0)
        with pytest.raises(ValueError, match="not"):
            search.report(1, 16000, math.nan)

        resumed = self.opened(storage_url, name, **study)  # the driver died before it could record that 3 was stopped
        again = [resumed.ask() for _ in range(3)]
        assert [proposal.number for proposal in again] == [0, 1, 4]
        assert not resumed.report(1, 8000, 77.0)  # as it was reported before
        assert resumed.report(4, 8000, 7.0)
        stored = resumed.study.get_trials(deepcopy=False)
        assert [trial.state for trial in stored[:4]] == [TrialState.RUNNING] * 2 + [TrialState.PRUNED] * 2
        assert stored[3].user_attrs["outcome"] == "stopped" and stored[3].intermediate_values == {8000: 6.0}
        assert stored[1].intermediate_values == {8000: 1.0}

    def test_rung_metric_stops_with_several_metrics(self, storage_url, name):
        study = {"trials": 9, "pruner": "median", "rungs": [8000], "further_metrics": ["is"], "rung_metric": "is"}
        search = self.opened(storage_url, name, **study)
        for number in range(5):
            search.ask()
            assert not search.report(number, 8000, 4.0 + number)  # no median of fewer than five
            search.complete(number, scored(10.0, details(fid=10.0, **{"is": 4.0 + number})))
        search.ask()
        assert not search.report(5, 8000, 9.0)
        search.study.tell(5, [9.0, 9.0])  # the driver died before it updated `NAME/rungs`
        search = self.opened(storage_url, name, **study)
        for _ in range(2):
            search.ask()
        assert search.report(6, 8000, 6.3) and not search.report(7, 8000, 6.7)  # maximised; the median of 4 … 9 is 6.5
        search.prune(6, ended("stopped"))
        assert search.unfinished() == [7]
        stored = search.study.get_trials(deepcopy=False)
        assert rung_values(stored) == {
            number: {8000: value} for number, value in enumerate([4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 6.3, 6.7])
        }
        assert stored[6].user_attrs["rungs"]["8000"]["stop"] and not stored[7].user_attrs["rungs"]["8000"]["stop"]

    def test_constraints_reach_the_sampler(self, storage_url, name):
        bounds = {"nll_token": {"max_above_baseline": 0.05}, "seconds": {"max": 59.0}}
        search = self.opened(storage_url, name, trials=3, constraints=bounds)
        search.ask()
        assert search.ask() is None and search.stop_reason() is None  # the baseline first: the others are bounded by it
        search.complete(0, scored(5.0, details(fid=5.0, nll_token=2.0)))
        search.ask()
        with pytest.raises(ValueError, match="lack nll_token"):
            search.complete(1, scored(4.0, details(fid=4.0)))
        search = self.opened(storage_url, name, trials=3, constraints=bounds)
        search.ask()
        search.complete(1, scored(4.0, details(fid=4.0, nll_token=2.125)))
        trial = search.study.get_trials(deepcopy=False)[1]
        excesses = pytest.approx({"nll_token max_above_baseline": 0.075, "seconds max": 1.0})
        assert compat.named_constraints(trial) == compat.without_legacy_constraints(trial).constraints == excesses
        assert trial.system_attrs["constraints"] == pytest.approx([0.075, 1.0])  # what optuna-dashboard reads
        assert search.study.metric_names == ["fid"]

    def test_relative_search_needs_the_baseline(self, storage_url, name):
        search = self.opened(storage_url, name, trials=3, space={}, terms={"lambda_unit": "share"})
        search.ask()
        search.prune(0, ended("diverged"))
        assert search.ask() is None and "the baseline has no score" in search.stop_reason()
        assert (
            "the baseline has no score"
            in self.opened(storage_url, name, trials=3, space={}, terms={"lambda_unit": "share"}).stop_reason()
        )

    def test_budget_ends_and_larger_one_continues(self, storage_url, name):
        clock, limits = Clock(), {"trials": 9, "max_gpu_hours": 5.0}
        run = {"gpus_per_worker": 2, "max_attempts": 3}
        search = Search(study_config(name, run=run, **limits), storage_url, clock=clock)
        search.ask()
        clock.now += 3600
        search.crashed(0, LOST)
        clock.now += 7200  # idle: costs nothing
        assert (search.spent().gpu_hours, search.spent().wall_hours) == pytest.approx((2.0, 1.0))
        search.ask()
        clock.now += 3600
        assert search.ask().number == 1 and search.spent().gpu_hours == pytest.approx(4.0)
        clock.now += 1800  # two trials at once
        assert search.spent().gpu_hours == pytest.approx(6.0) and search.spent().wall_hours == pytest.approx(2.5)
        assert search.ask() is None and "study.max_gpu_hours 5" in search.stop_reason()
        search.complete(0, scored(3.0, details(fid=3.0)))

        seen = {1: clock.now + 1800}
        larger = Search(
            study_config(name, run=run, **{**limits, "max_gpu_hours": 9.0}),
            storage_url,
            clock=Clock(clock.now + 1e6),
            last_active=seen.get,
        )
        assert larger.spent().gpu_hours == pytest.approx(7.0)  # trial 1 ran on until it was last seen
        assert (larger.ask().number, larger.ask().number, larger.stop_reason()) == (1, 2, None)


def test_inference_parameters_are_not_sampled():
    assert list(searched_entries(study_config())) == [
        "loss.lambda_1",
        "loss.lambda_2",
        "loss.reference",
        "loss.neighbours",
        "model.depth",
    ]
    joint = validate({"inference": {"search": "joint"}, "space": SPACE}, "test")
    assert "inference.cfg_scale" in searched_entries(joint)
