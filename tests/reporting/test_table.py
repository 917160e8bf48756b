import dataclasses

import pytest
from rich.console import Console

from tests.helpers.synthetic_study import study, whole_study
from uvar_tune.reporting import fields, ranked_table
from uvar_tune.reporting.table import cell, columns, ordered


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return study(tmp_path_factory.mktemp("study"), 30)


def printed(results) -> list[str]:
    console = Console(width=100, record=True, file=open("/dev/null", "w", encoding="utf-8"))
    console.print(ranked_table(results))
    return console.export_text().splitlines()


def test_every_trial_has_a_rank_or_an_outcome(results):
    rows = ordered(results)
    ranks = [rank for rank, _ in rows if rank is not None]
    assert ranks == list(range(1, len(ranks) + 1)) and len(rows) == 30
    values = [trial.value for rank, trial in rows if rank is not None]
    assert values == sorted(values)
    assert {fields.outcome(trial) for rank, trial in rows if rank is None} <= {
        "diverged",
        "out of memory",
        "crashed",
        "running",
    }


def test_columns_have_effective_values(results):
    names = columns(results)
    assert names[:4] == ["rank", "trial", "kind", "fid"] and names[-3:] == ["outcome", "attempts", "seconds"]
    baseline, best = results.baseline, results.best
    assert cell(results, baseline, 9, "loss.lambda_1") == 0.0
    assert cell(results, baseline, 9, "loss.reference") is None  # it enters only where λ1 > 0
    assert cell(results, best, 1, "loss.reference") == best.params["loss.reference"]
    unscored = next(trial for trial in results.trials if trial.state != "COMPLETE")
    assert cell(results, unscored, None, "inference.cfg_scale") is None  # a profile not taken has chosen nothing


def test_table_fits_100_columns(results):
    lines = printed(results)
    assert max(map(len, lines)) <= 100 and not any("…" in line for line in lines)
    assert sum("baseline" in line for line in lines) == 1


def test_long_table_has_best_and_baseline(tmp_path):
    results = study(tmp_path, 1000)
    lines = printed(results)
    assert len(lines) < 45 and any("baseline" in line for line in lines) and "more trials" in "".join(lines)


def test_empty_columns_are_omitted(results, tmp_path):
    assert not {"verdict", "feasible", "ece_token"} & set(columns(results))
    whole = whole_study(tmp_path, 40)
    assert (
        columns(whole)[:6] == ["rank", "trial", "kind", "fid", "ece_token", "verdict"]
        and columns(whole)[6] == "feasible"
    )
    assert cell(whole, whole.best, 1, "verdict") == "better" and cell(whole, whole.baseline, 9, "verdict") is None
    assert cell(whole, whole.best, 1, "ece_token") == whole.best.metric_values["ece_token"]
    ranks = [cell(whole, trial, rank, "feasible") for rank, trial in ordered(whole) if rank]
    assert ranks == ["yes"] * ranks.count("yes") + ["no"] * ranks.count("no") and ranks.count("no") > 0
    lines = printed(whole)
    assert max(map(len, lines)) <= 100 and not any("…" in line for line in lines)
    assert any("better" in line for line in lines) and "fresh paired seeds" in " ".join(lines)


def test_searched_share_has_an_effective_column(results):
    config = {**results.config, "loss": {"lambda_unit": "share"}}
    best = dataclasses.replace(results.best, effective_parameters={"loss.lambda_1": 0.25, "loss.lambda_2": 0.0})
    trials = tuple(best if trial.number == best.number else trial for trial in results.trials)
    shares = dataclasses.replace(results, config=config, trials=trials)
    assert fields.label(shares, "loss.lambda_1") == "share of λ₁" and fields.label(results, "loss.lambda_1") == "λ₁"
    name = "loss.lambda_1" + fields.EFFECTIVE
    assert name in columns(shares) and "loss.lambda_2" + fields.EFFECTIVE not in columns(shares)
    assert cell(shares, best, 1, name) == 0.25 and fields.label(shares, name) == "λ₁ (effective)"


def test_lambda_1_settings_are_empty_in_baseline(results):
    entry = {"role": "scientific", "type": "categorical", "choices": ["wasserstein", "kl"]}
    named = {"loss.discrepancy": "kl", "loss.reference": "normal"}
    trials = tuple(dataclasses.replace(trial, params={**trial.params, **named}) for trial in results.trials)
    searched = dataclasses.replace(results, space={**results.space, "loss.discrepancy": entry}, trials=trials)
    assert [cell(searched, searched.baseline, 1, name) for name in named] == [None, None]
    assert [cell(searched, trials[1], 1, name) for name in named] == ["kl", "normal"]


def test_inactive_conditional_parameter_is_empty(results):
    entry = {"type": "float", "low": 2.0, "high": 32.0, "log": True, "when": {"loss.reference": "semantic"}}
    space = {**results.space, "loss.neighbours": entry}
    trials = tuple(
        dataclasses.replace(trial, params={**trial.params, "loss.neighbours": 8.0}) for trial in results.trials
    )
    conditional = dataclasses.replace(results, space=space, trials=trials)
    shown = {
        trial.params["loss.reference"] for trial in trials[1:] if cell(conditional, trial, 1, "loss.neighbours") == 8.0
    }
    assert shown == {"semantic"}


def test_selected_parameter_that_varies_is_a_column(results):
    trials = tuple(
        dataclasses.replace(trial, params={**trial.params, "inference.temperature": 0.9 + 0.01 * trial.number})
        for trial in results.trials
    )
    assert "inference.temperature" in columns(dataclasses.replace(results, trials=trials))
    assert "inference.temperature" not in columns(results)


def test_table_without_scores_or_trials(results):
    unscored = tuple(trial for trial in results.trials if trial.state != "COMPLETE")
    lines = printed(dataclasses.replace(results, trials=unscored))
    words = {fields.outcome(trial) for trial in unscored}
    assert sum(any(f" {word} │" in line for word in words) for line in lines) == len(unscored) > 0
    assert any("rank" in line for line in printed(dataclasses.replace(results, trials=())))


def test_column_that_says_nothing_is_left_out(results):
    heads = printed(results)[2]
    assert "attempts" not in heads and "IS" not in heads  # each trial has one attempt and the same IS
    twice = dataclasses.replace(results.trials[1], attempts=2)
    heads = printed(dataclasses.replace(results, trials=(results.trials[0], twice)))[2]
    assert "attempts" in heads


def test_score_within_noise_is_marked(tmp_path):
    whole = whole_study(tmp_path, 12)
    lines = {line.split("│")[2].strip(): line for line in printed(whole) if line.startswith("│")}
    marked = {number for number, line in lines.items() if "≈" in line}
    near = {str(trial.number) for trial in whole.trials if fields.within_noise(whole, trial)}
    assert near and marked == near and "0 baseline" in lines
    assert {number for number, line in lines.items() if "!" in line} == {
        str(trial.number) for trial in whole.trials if not trial.feasible and trial.value is not None
    }


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (61, "1 min 1 s"),
        (3600, "1 h"),
        (4320, "1 h 12 min"),
        (90061, "1 d 1 h"),
        (None, "–"),
    ],
)
def test_durations_have_two_units(seconds, text):
    assert fields.format_duration(seconds) == text
