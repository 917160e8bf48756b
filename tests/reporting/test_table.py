import dataclasses

import pytest
from rich.console import Console
from synthetic_study import study

from uvar_tune.reporting import facts, ranked_table
from uvar_tune.reporting.table import cell, columns, ordered


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return study(tmp_path_factory.mktemp("study"), 30)


def printed(results) -> list[str]:
    console = Console(width=140, record=True, file=open("/dev/null", "w"))
    console.print(ranked_table(results))
    return console.export_text().splitlines()


def test_every_trial_is_ranked_or_has_its_reason(results):
    rows = ordered(results)
    ranks = [rank for rank, _ in rows if rank is not None]
    assert ranks == list(range(1, len(ranks) + 1)) and len(rows) == 30
    values = [trial.value for rank, trial in rows if rank is not None]
    assert values == sorted(values)
    assert {facts.outcome(trial) for rank, trial in rows if rank is None} <= {"diverged", "out of memory", "crashed", "running"}


def test_the_columns_hold_what_ran(results):
    names = columns(results)
    assert names[:4] == ["rank", "trial", "kind", "fid"] and names[-3:] == ["outcome", "attempts", "seconds"]
    baseline, best = results.baseline, results.best
    assert cell(results, baseline, 9, "objective.lambda_1") == 0.0
    assert cell(results, baseline, 9, "objective.reference") is None  # it enters only where λ1 > 0
    assert cell(results, best, 1, "objective.reference") == best.params["objective.reference"]
    unscored = next(trial for trial in results.trials if trial.state != "COMPLETE")
    assert cell(results, unscored, None, "inference.cfg_scale") is None  # a profile not taken has chosen nothing


def test_it_fits_140_columns_with_nothing_cut_off(results):
    lines = printed(results)
    assert max(map(len, lines)) <= 140 and not any("…" in line for line in lines)
    assert sum("baseline" in line for line in lines) == 1


def test_a_long_study_shows_its_best_and_its_baseline(tmp_path):
    results = study(tmp_path, 1000)
    lines = printed(results)
    assert len(lines) < 45 and any("baseline" in line for line in lines) and "more trials" in "".join(lines)


@pytest.mark.parametrize(("name", "value", "end"), [
    ("objective.lambda_1", 0.0105, "lower bound 0.01"), ("objective.lambda_1", 5.9, "upper bound 6"),
    ("objective.lambda_2", 0.004, "lower bound 0.004"), ("objective.lambda_1", 0.012, None), ("objective.lambda_2", 0.8, None),
])
def test_a_best_at_a_bound_is_warned_of(results, name, value, end):
    best = dataclasses.replace(results.best, params={**results.best.params, "objective.lambda_1": 0.3, "objective.lambda_2": 0.05,
                                                     name: value})
    trials = tuple(best if trial.number == best.number else trial for trial in results.trials)
    found = facts.boundary_warnings(dataclasses.replace(results, trials=trials))
    assert [end in line for line in found] == ([True] if end else [])


@pytest.mark.parametrize(("cfg", "mode", "warned"), [(4.0, "profile", True), (0.0, "profile", False), (2.0, "profile", False),
                                                     (0.0, "joint", True), (4.0, "joint", True)])
def test_so_is_a_cfg_scale_at_an_end(results, cfg, mode, warned):
    best = dataclasses.replace(results.best, params={"inference.cfg_scale": cfg})
    config = {**results.config, "inference": {**results.config["inference"], "mode": mode}}
    assert bool(facts.boundary_warnings(dataclasses.replace(results, trials=(best,), config=config))) == warned


def test_costs_add_up(results):
    scored = len(results.ranked())
    assert facts.costs(results) == [("training", 42.0 * scored, 42.0), ("evaluation", 21.0 * scored, 21.0)]
    (results.root / "cost.jsonl").write_text('{"time": 1.0, "all processes": 100.0}\n{"time": 2.0, "all processes": 20.5}\n')
    assert facts.costs(results)[-1][1:] == (120.5, None)


def test_a_study_without_a_score_or_without_a_trial_has_a_table_too(results):
    unscored = tuple(trial for trial in results.trials if trial.state != "COMPLETE")
    lines = printed(dataclasses.replace(results, trials=unscored))
    assert sum("search" in line for line in lines) == len(unscored) > 0
    assert any("rank" in line for line in printed(dataclasses.replace(results, trials=())))
