"""Arms under several seeds: the same plan goes on, another one begins anew beside it."""

from __future__ import annotations

import pytest

from tests.helpers.search_cases import details, study_config
from uvar_tune.search.replicates import Replicates, load_replicates

FIRST = {"baseline": {}, "trial 3": {"training.learning_rate": 1e-3}}
OTHER = {"baseline": {}, "trial 9": {"training.learning_rate": 2e-3}}


def finish(work: Replicates, limit: int = 100) -> list:
    """Tell each proposal a score; the proposals."""
    found = []
    while len(found) < limit and (proposal := work.ask()) is not None:
        work.complete(proposal.number, 1.0 + proposal.number, details(fid=1.0))
        found.append(proposal)
    return found


@pytest.fixture
def begin(journal):
    def opened(arms, count):
        return Replicates(study_config(), journal, "confirm", arms, count)

    return opened


def test_the_same_arms_go_on_also_with_more_replicates(begin):
    begun = begin(FIRST, 2)
    assert begun.left() == 4 and len(finish(begun, limit=3)) == 3 and begun.left() == 1
    again = begin(dict(reversed(FIRST.items())), 3)  # the order in which they were begun stays
    assert [cell.arm for cell in again.replicates()] == ["baseline", "trial 3", "baseline"]
    assert again.phase == "confirm" and [proposal.number for proposal in finish(again)] == [3, 4, 5]
    assert [(cell.arm, cell.index) for cell in again.replicates()] == [(arm, i) for i in range(3) for arm in FIRST]


def test_other_arms_begin_anew_on_fresh_seeds_and_nothing_is_lost(begin):
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


def test_a_phase_that_was_made_and_given_nothing_is_the_one(begin, journal):
    work = begin(FIRST, 2)
    work.storage.create_new_study(work.study.directions, "study/confirm-2")  # the driver died within the next line
    assert begin(OTHER, 2).phase == "confirm-2"
