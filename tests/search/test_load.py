"""What is read back from the storage: of a study with several objectives, constraints and rungs, and of its phases."""

from __future__ import annotations

import pytest

from tests.helpers.search_cases import NARROW, Clock, scored, study_config
from uvar_tune.analysis.confirmation import SECOND_ALONE, SEMANTIC_ALONE, SMOOTHING, confirm_arms, verdicts
from uvar_tune.analysis.results import BASELINE
from uvar_tune.analysis.sequential import SequentialDesign
from uvar_tune.errors import ConfigError
from uvar_tune.search.load import load_results, stored_protocol
from uvar_tune.search.replicates import Replicates
from uvar_tune.search.study import Search
from uvar_tune.specs import crash
from uvar_tune.study_dir import StudyDirectory

# trial → (FID, recall, held-out NLL); the constraint: at most 0.1 above the baseline's NLL
SCORES = [(5.0, 0.50, 3.0), (4.0, 0.40, 3.05), (3.0, 0.90, 3.3), (4.5, 0.60, 2.9), (4.2, 0.30, 3.0), (4.8, 0.55, 3.0)]
BOUND = {"nll_token": {"max_above_baseline": 0.1}}


@pytest.fixture
def files(tmp_path) -> StudyDirectory:
    files = StudyDirectory(tmp_path / "runs", "study")
    files.create()
    return files


def searched(files: StudyDirectory, **study):
    """(configuration, search) of a study whose trials scored as `SCORES` says, one after the other."""
    config, clock = study_config(space=NARROW, trials=len(SCORES), **study), Clock()
    search = Search(config, files.storage_url(config), clock=clock)
    for fid, recall, nll in SCORES:
        number = search.ask().number
        for images in config.study.rungs:
            search.report(number, images, fid + 1)
        clock.now += 100
        details = {
            "scores": {"fid": fid, "recall": recall, "nll_token": nll},
            "seconds": 100.0,
            "start_up_seconds": 10.0,
            "cpu_sec": {"training": 60.0, "evaluation": 20.0},
            "inference_parameters": {"inference.cfg_scale": 2.0},
        }
        search.complete(number, scored(fid, details))
        clock.now += 1000  # nobody works
    return config, search


def test_a_plain_study_has_nothing_but_its_trials(files):
    config, search = searched(files)
    results = load_results(config, files, search)
    assert results.best.number == 2 and results.best.metric_values == {"fid": 3.0}
    assert (results.further_metrics, results.pareto, results.confirmed, results.factorial, results.verdicts) == (
        {},
        (),
        {},
        {},
        {},
    )
    assert results.rung_correlation == () and set(results.importances.values()) == {None}
    assert all(trial.violations == {} and trial.rungs == {} and trial.feasible for trial in results.trials)


def test_infeasible_trials_rank_last(files):
    config, search = searched(files, constraints=BOUND)
    results = load_results(config, files, search)
    assert [trial.number for trial in results.ranked()] == [1, 4, 3, 5, 0, 2]
    assert results.best.number == 1 and not results.trials[2].feasible
    assert results.trials[2].violations == {"nll_token max_above_baseline": pytest.approx(0.2)}
    assert results.trials[2].violated == ["nll_token max_above_baseline"] and results.trials[1].violated == []


def test_the_front_holds_the_feasible_that_none_beats(files):
    config, search = searched(files, further_metrics=["recall"], constraints=BOUND)
    results = load_results(config, files, search)
    assert results.further_metrics == {"recall": "maximize"} and results.trials[1].metric_values == {
        "fid": 4.0,
        "recall": 0.4,
    }
    assert results.pareto == (1, 3)  # trial 2 beats all and oversteps the bound; 4 and 5 are beaten by 1 and 3


@pytest.mark.parametrize("several", [{}, {"further_metrics": ["recall"], "rung_metric": "fid"}])
def test_rungs_are_compared_with_the_end(files, several):
    config, search = searched(files, rungs=[6400, 12800], pruner="median", **several)
    results = load_results(config, files, search)
    assert results.trials[3].rungs == {6400: 5.5, 12800: 5.5}
    assert [(row["rung"], row["later"]) for row in results.rung_correlation] == [
        (6400, 12800),
        (6400, "end"),
        (12800, "end"),
    ]
    assert all(row["spearman"] == pytest.approx(1) and row["trials"] == 6 for row in results.rung_correlation)


def test_wall_time_is_divided(files):
    config, clock = study_config(space=NARROW, trials=3), Clock()
    search = Search(config, files.storage_url(config), clock=clock)
    first, second = search.ask(), search.ask()
    clock.now += 30
    assert search.crashed(first.number, crash("OSError", "the node is gone"))
    assert search.ask().number == first.number
    clock.now += 50
    done = {"scores": {"fid": 5.0}, "seconds": 50.0, "start_up_seconds": 8.0}
    search.complete(first.number, scored(5.0, done))
    clock.now += 20
    search.complete(second.number, scored(4.0, {**done, "start_up_seconds": 5.0}))
    search.ask()  # still at work: counts nowhere
    results = load_results(config, files, search)
    assert results.trials[0].wall_sec == {"start-up": 8.0, "work": 42.0, "earlier": 30.0}
    assert results.trials[1].wall_sec == {"start-up": 5.0, "work": 95.0, "earlier": 0.0}
    assert results.trials[2].wall_sec == {} and results.idle_sec == pytest.approx(
        20
    )  # two places of 100 s, 180 s of work


def confirm(config, files, results, rounds: int, effects: dict[str, float]) -> Replicates:
    """``rounds`` rounds of the phase `confirm`, each arm at its effect over the replicate's own level; one replicate more begun."""
    arms = confirm_arms(config, results, {})
    work = Replicates(config, files.storage_url(config), "confirm", arms, rounds + 1)
    for _ in range(rounds * len(arms)):
        proposal = work.ask()
        replicate = proposal.number // len(arms)
        value = 5 + replicate + effects[proposal.kind] + 0.01 * ((7 * proposal.number) % 5)
        params = {"inference.cfg_scale": 1.0 + replicate, "inference.temperature": 0.9}
        work.complete(
            proposal.number,
            scored(value, {"scores": {"fid": value}, "inference_parameters": params, "protocol": {"samples": 1000}}),
        )
    work.ask()
    return work


EFFECTS = {BASELINE: 0.0, SMOOTHING: 0.0, "trial 2": -1.0, "trial 1": 0.5, SECOND_ALONE: -0.6, SEMANTIC_ALONE: -0.2}


def test_the_confirmation_is_read_back_whole(files):
    config, search = searched(files, confirm_top=2)
    confirm(config, files, load_results(config, files, search), 5, EFFECTS)
    results = load_results(config, files)
    assert results.factorial == {
        "none": BASELINE,
        "second": SECOND_ALONE,
        "semantic": SEMANTIC_ALONE,
        "both": "trial 2",
    }
    best = results.confirmed["trial 2"]
    assert list(best["values"]) == [0, 1, 2, 3, 4] and best["mean"] == pytest.approx(sum(best["values"].values()) / 5)
    assert best["points"] == {"inference.cfg_scale": 3.0, "inference.temperature": 0.9}
    assert results.verdict(results.best)["verdict"] == "better" and results.verdicts["trial 1"]["verdict"] == "worse"
    assert results.untested == {}


def test_a_best_of_one_term_has_no_2x2(files):
    space = {**NARROW, "loss.lambda_2": {"role": "fixed", "type": "categorical", "choices": [0.0]}}
    config = study_config(space=space, trials=3)
    search = Search(config, files.storage_url(config))
    for fid in (5.0, 4.0, 3.0):
        search.complete(search.ask().number, scored(fid, {"scores": {"fid": fid}}))
    arms = confirm_arms(config, load_results(config, files, search), {})
    assert list(arms) == [BASELINE, SMOOTHING, "trial 2", "trial 1"]
    assert len({tuple(sorted(values.items())) for values in arms.values()}) == 4


def test_2x2_belongs_to_its_trial(files):
    config, search = searched(files, confirm_top=1)
    confirm(config, files, load_results(config, files, search), 4, EFFECTS)
    longer = study_config(space=NARROW, trials=len(SCORES) + 1, confirm_top=1)
    search = Search(longer, files.storage_url(longer))
    search.complete(search.ask().number, scored(1.0, {"scores": {"fid": 1.0}}))
    results = load_results(longer, files, search)
    assert results.best.number == len(SCORES) and results.verdict(results.best) is None
    assert results.factorial["both"] == "trial 2"


def test_protocol_change_names_its_trial(files):
    config = study_config(space=NARROW, trials=4)
    search = Search(config, files.storage_url(config))
    assert stored_protocol(search.storage, "study") == {} == stored_protocol(search.storage, "other")
    for samples in (1000, 1000, 500):
        search.complete(search.ask().number, scored(5.0, {"scores": {"fid": 5.0}, "protocol": {"samples": samples}}))
    assert stored_protocol(search.storage, "study") == {"samples": 1000}
    with pytest.raises(ConfigError, match="study 'study', trial 2: protocol.samples is 500, and 1000 in trial 0"):
        load_results(config, files, search)


def test_protocol_change_gives_no_verdict(files):
    """Midway in each arm: the last replicates alone would all be equal."""
    config, search = searched(files, confirm_top=1)
    results = load_results(config, files, search)
    arms = confirm_arms(config, results, {})
    work = Replicates(config, files.storage_url(config), "confirm", arms, 4)
    for number in range(4 * len(arms)):
        protocol = {"metric_version": "1" if number < 2 * len(arms) else "2"}
        work.complete(work.ask().number, scored(5.0 + number % 3, {"scores": {"fid": 5.0}, "protocol": protocol}))
    said = "arm 'baseline', replicate 2: protocol.metric_version is '2', and '1' in replicate 0 of 'baseline'"
    with pytest.raises(ConfigError, match=said):
        verdicts(config, work.replicates(), {}, SequentialDesign(4))
    found = load_results(config, files, search)
    assert (
        found.verdicts == {}
        and all(said in why for why in found.untested.values())
        and len(found.untested) == len(arms) - 1
    )


def test_a_confirmation_under_way_is_no_error(files):
    config, search = searched(files, confirm_top=1)
    results = load_results(config, files, search)
    arms = confirm_arms(config, results, {})
    work = Replicates(config, files.storage_url(config), "confirm", arms, 4)
    work.ask(), work.ask()
    work.complete(0, scored(5.0, {"scores": {"fid": 5.0}, "protocol": {}}))
    found = load_results(config, files, search)
    assert found.confirmed[BASELINE]["values"] == {0: 5.0} and found.verdicts == {}
    assert set(found.untested) == {SMOOTHING}
