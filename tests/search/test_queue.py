"""Trials that others add to a study: queued ones run first, foreign ones inform the sampler and are not ranked."""

from __future__ import annotations

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from tests.helpers.search_cases import NARROW, details, run_to_end, scored, study_config
from uvar_tune.analysis.results import QUEUED
from uvar_tune.cli.main import main
from uvar_tune.errors import ConfigError
from uvar_tune.search.load import load_results
from uvar_tune.search.queue import check_queued
from uvar_tune.search.storage import open_storage
from uvar_tune.search.study import Search
from uvar_tune.study_dir import StudyDirectory

KNOWN = {"loss.lambda_1": 0.5, "loss.lambda_2": 0.1}


@pytest.fixture
def files(tmp_path):
    return StudyDirectory(tmp_path, "study")


def begin(files, **study) -> Search:
    """The search of a study whose directory exists."""
    config = study_config(space=NARROW, **{"trials": 4, **study})
    files.create()
    files.create_or_verify(config)
    return Search(config, files.storage_url(config))


def optuna_study(files) -> optuna.Study:
    """The study as any Optuna program opens it."""
    return optuna.load_study(study_name="study", storage=open_storage(files.storage_url(study_config())))


def terms(proposal) -> dict:
    return {name: proposal.values[name] for name in KNOWN}


def test_queued_trials_run_first_and_are_scored(files):
    search = begin(files)
    search.complete(search.ask().number, scored(9.0, details(fid=9.0)))
    optuna_study(files).enqueue_trial(KNOWN)
    optuna_study(files).enqueue_trial({"loss.lambda_1": 2})  # in part, a whole number
    first, second, *_ = asked = run_to_end(Search(search.config, files.storage_url(search.config)))
    assert terms(first) == KNOWN and first.kind == QUEUED
    assert second.values["loss.lambda_1"] == 2.0 and 0.004 <= second.values["loss.lambda_2"] <= 0.9
    assert len(asked) == 3  # four trials in all, the queued ones among them
    results = load_results(search.config, files)
    assert results.best.kind == QUEUED and all(trial.value is not None for trial in results.trials)


def test_queue_of_the_space_file_is_run_once(files):
    search = begin(files, queue=[KNOWN, {"loss.lambda_2": 0.2}])
    baseline, first, second, third = run_to_end(search)
    assert terms(baseline) == dict.fromkeys(KNOWN, 0) and terms(first) == KNOWN
    assert second.values["loss.lambda_2"] == 0.2 and third.kind != QUEUED
    assert Search(search.config, files.storage_url(search.config)).ask() is None


def test_trial_queued_before_the_start_is_kept(files):
    search = begin(files)
    optuna_study(files).enqueue_trial(KNOWN)  # it would be trial 0, which is the baseline
    baseline, queued, *_ = run_to_end(Search(search.config, files.storage_url(search.config)))
    assert (baseline.number, baseline.kind) == (0, "baseline") and terms(queued) == KNOWN


def test_queued_trial_outside_the_space_fails_with_a_reason(files):
    search = begin(files, trials=2)
    search.complete(search.ask().number, scored(9.0, details(fid=9.0)))
    optuna_study(files).enqueue_trial({"loss.lambda_1": 100.0})
    assert [proposal.kind for proposal in run_to_end(search)] == ["search"]
    failed = optuna_study(files).trials[1]
    assert failed.state == TrialState.FAIL and "outside its range" in failed.user_attrs["message"]


def test_foreign_trials_are_neither_run_nor_ranked(files):
    search = begin(files)
    search.complete(search.ask().number, scored(9.0, details(fid=9.0)))
    foreign, space = optuna_study(files), {"loss.lambda_1": optuna.distributions.FloatDistribution(0.01, 6, log=True)}
    foreign.add_trial(create_trial(params={"loss.lambda_1": 0.3}, distributions=space, values=[1.0]))
    foreign.add_trial(create_trial(params={"loss.lambda_1": 0.4}, distributions=space, state=TrialState.FAIL))
    running = foreign.ask(space)
    again = Search(search.config, files.storage_url(search.config))
    assert len(run_to_end(again)) == 3
    results = load_results(search.config, files)
    assert [trial.number for trial in results.trials] == [0, 4, 5, 6]
    assert results.best.value > 1.0 and optuna_study(files).trials[running.number].state == TrialState.RUNNING


@pytest.mark.parametrize(
    "values, message",
    [
        ({"loss.lambda1": 1.0}, "'loss.lambda1' is not searched; did you mean 'loss.lambda_1'"),
        ({"loss.lambda_1": 7.0}, r"outside its range \[0.01, 6\]; did you mean '6'"),
        ({"loss.reference": "norml"}, "none of the choices normal, semantic; did you mean 'normal'"),
        ({"model.depth": 2.5}, "of whole numbers"),
        ({"loss.neighbours": 4.0}, "exists only if loss.reference is semantic: give loss.reference too"),
        ({"loss.neighbours": 4.0, "loss.reference": "normal"}, "does not exist if loss.reference is 'normal'"),
    ],
)
def test_invalid_queued_values_are_named(values, message):
    with pytest.raises(ConfigError, match=message):
        check_queued(study_config(), values, "queue")


def test_queue_command(files, capsys):
    search = begin(files)
    search.complete(search.ask().number, scored(9.0, details(fid=9.0)))
    command = ["queue", "study", "--root", str(files.directory.parent)]
    assert main([*command, "loss.lambda_1=0.5", "loss.lambda_2=0.1"]) == 0
    assert "trial 1 of study 'study' is queued" in capsys.readouterr().out
    assert terms(Search(search.config, files.storage_url(search.config)).ask()) == KNOWN
    assert main([*command, "loss.lambda_1=99"]) == 2
    assert "did you mean '6'" in capsys.readouterr().err
    assert main([*command, "loss.epsilon=0.1"]) == 2
    assert "is not searched" in capsys.readouterr().err
    assert main(["queue", "studdy", "--root", str(files.directory.parent), "loss.lambda_1=1"]) == 2
    assert "did you mean 'study'" in capsys.readouterr().err
