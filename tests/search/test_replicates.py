"""Arms under several seeds: the same plan resumes, another one starts a new round."""

from __future__ import annotations

import pytest

from tests.helpers.search_cases import details, scored, study_config
from uvar_tune.analysis.confirmation import stopped_arms
from uvar_tune.errors import ConfigError
from uvar_tune.search.replicates import Replicates, StopRule, confirmation_design, load_replicates

FIRST = {"baseline": {}, "trial 3": {"training.learning_rate": 1e-3}}
OTHER = {"baseline": {}, "trial 9": {"training.learning_rate": 2e-3}}


def finish(work: Replicates, limit: int = 100) -> list:
    """Complete each proposal with a score; the proposals."""
    found = []
    while len(found) < limit and (proposal := work.ask()) is not None:
        work.complete(proposal.number, scored(1.0 + proposal.number, details(fid=1.0)))
        found.append(proposal)
    return found


@pytest.fixture
def begin(journal):
    def opened(arms, count):
        return Replicates(study_config(), journal, "confirm", arms, count)

    return opened


def test_same_arms_resume_with_more_replicates(begin):
    begun = begin(FIRST, 2)
    assert begun.remaining() == 4 and len(finish(begun, limit=3)) == 3 and begun.remaining() == 1
    again = begin(dict(reversed(FIRST.items())), 3)  # the order in which they were begun stays
    assert [cell.arm for cell in again.replicates()] == ["baseline", "trial 3", "baseline"]
    assert again.phase == "confirm" and [proposal.number for proposal in finish(again)] == [3, 4, 5]
    assert [(cell.arm, cell.index) for cell in again.replicates()] == [(arm, i) for i in range(3) for arm in FIRST]


def test_other_arms_start_a_round_on_fresh_seeds(begin):
    first = finish(begin(FIRST, 2))
    other = begin(OTHER, 2)
    assert other.phase == other.folder == "confirm-2" and other.replicates() == []
    second = finish(other)
    assert [proposal.kind for proposal in second] == ["baseline", "trial 9"] * 2
    assert {seed for one in first for seed in one.seeds.values()}.isdisjoint(
        seed for one in second for seed in one.seeds.values()
    )
    assert second[0].seeds["training"] == second[1].seeds["training"]  # paired
    assert begin(OTHER, 2).phase == "confirm-2" and len(begin(OTHER, 2).replicates()) == 4
    assert [cell.arm for cell in load_replicates(other.storage, "study", "confirm")] == ["baseline", "trial 9"] * 2
    assert begin(FIRST, 2).phase == "confirm-3"  # what was looked at since then has been looked at


def test_empty_round_is_used(begin, journal):
    work = begin(FIRST, 2)
    work.storage.create_new_study(work.study.directions, "study/confirm-2")  # the driver died within the next line
    assert begin(OTHER, 2).phase == "confirm-2"


def score(arm: str, index: int) -> float:
    """FID: one arm is far better than the baseline, one is the same, one is worse."""
    return {"baseline": 5.0, "good": 3.0, "same": 5.0, "bad": 6.0}[arm] + 0.01 * ((index * 7 + len(arm)) % 5)


@pytest.fixture
def sequential(journal):
    config = study_config()

    def start(count: int = 12) -> Replicates:
        arms = {
            name: {"training.learning_rate": i / 1e3} for i, name in enumerate(("baseline", "good", "same", "bad"), 1)
        }
        rule = StopRule(lambda replicates, design: stopped_arms(config, replicates, design))
        return Replicates(config, journal, "confirm", arms, count, stop_rule=rule)

    return start


def test_sequential_arms_stop_one_by_one(sequential):
    work, runs = sequential(), []
    running = []
    while (proposal := work.ask()) is not None or running:
        if proposal is not None:
            running.append(proposal)
            if len(running) < 3:  # three trials at once, and the driver dies now and then
                continue
        first = running.pop(0)
        if first.number % 5 == 4 and first.attempt == 1:
            work, running = sequential(), []
            continue
        index = work.storage.get_trial_user_attrs(work._trial_id(first.number))["replicate"]
        runs.append((first.kind, index))
        value = score(first.kind, index)
        work.complete(first.number, scored(value, details(fid=value)))
    pairs = {arm: sorted(index for name, index in runs if name == arm) for arm in work.arms}
    assert all(indices == list(range(len(indices))) for indices in pairs.values())  # each once, without a gap
    assert len(pairs["good"]) < 12 and len(pairs["bad"]) < 12 and len(pairs["same"]) < 12
    assert len(pairs["baseline"]) == max(len(pairs[arm]) for arm in ("good", "same", "bad"))
    assert work.done() and work.remaining() == 0 and work.ask() is None


def test_maximum_of_pairs_is_fixed_once_begun(sequential, journal):
    work = sequential()
    work.complete(work.ask().number, scored(1.0, details(fid=1.0)))
    with pytest.raises(ConfigError, match="20 replicates, but the maximum .* was fixed at 12"):
        sequential(20)
    design = confirmation_design(work.storage, study_config())
    assert (design.max_pairs, design.round_number) == (12, 1)
