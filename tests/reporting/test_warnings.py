import dataclasses

import pytest

from tests.helpers.synthetic_study import study
from uvar_tune.reporting.warnings import boundary_warnings, rung_warnings, share_warnings, study_warnings


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return study(tmp_path_factory.mktemp("study"), 30)


@pytest.mark.parametrize(
    ("name", "value", "end"),
    [
        ("loss.lambda_1", 0.0105, "lower bound 0.01"),
        ("loss.lambda_1", 5.9, "upper bound 6"),
        ("loss.lambda_2", 0.004, "lower bound 0.004"),
        ("loss.lambda_1", 0.012, None),
        ("loss.lambda_2", 0.8, None),
    ],
)
def test_warning_of_best_value_at_a_bound(results, name, value, end):
    best = dataclasses.replace(
        results.best, params={**results.best.params, "loss.lambda_1": 0.3, "loss.lambda_2": 0.05, name: value}
    )
    trials = tuple(best if trial.number == best.number else trial for trial in results.trials)
    found = boundary_warnings(dataclasses.replace(results, trials=trials))
    assert [end in line for line in found] == ([True] if end else [])


@pytest.mark.parametrize(
    ("cfg", "mode", "warned"),
    [
        (4.0, "per_checkpoint", True),
        (0.0, "per_checkpoint", False),
        (2.0, "per_checkpoint", False),
        (0.0, "joint", True),
        (4.0, "joint", True),
    ],
)
def test_warning_of_cfg_scale_at_an_end(results, cfg, mode, warned):
    reached = ["inference.cfg_scale"] if warned and mode == "per_checkpoint" else []
    best = dataclasses.replace(results.best, params={"inference.cfg_scale": cfg}, inference_at_bound=reached)
    config = {**results.config, "inference": {**results.config["inference"], "search": mode}}
    assert bool(boundary_warnings(dataclasses.replace(results, trials=(best,), config=config))) == warned


@pytest.mark.parametrize(
    ("share", "held_out", "warned"), [(0.05, 0.001, True), (0.05, 0.04, False), (0.009, 0.0, False)]
)
def test_warning_of_memorised_images(results, share, held_out, warned):
    scores = {**results.best.scores, "copy_share": share, "copy_share/held_out": held_out}
    best = dataclasses.replace(results.best, scores=scores)
    trials = tuple(best if trial.number == best.number else trial for trial in results.trials)
    found = [line for line in study_warnings(dataclasses.replace(results, trials=trials)) if "near copies" in line]
    assert bool(found) == warned and all(line.startswith("5 % of the samples of the best trial") for line in found)


def test_warning_of_a_confirmation_at_an_end(results):
    row = {
        "values": {0: 1.0},
        "mean": 1.0,
        "points": {"inference.temperature": 1.4},
        "at_bound": ["inference.temperature"],
    }
    found = boundary_warnings(dataclasses.replace(results, confirmed={"trial 3": row}))
    assert [("trial 3" in line and "the verdict" in line) for line in found if line.startswith("confirmation")] == [
        True
    ]


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (0.0002, 0.0009, "has next to no effect"),
        (0.0002, 0.0011, None),
        (0.01, 0.9, None),
        (0.45, 0.9, None),
        (0.51, 0.9, "dominates"),
    ],
)
def test_warning_of_negligible_or_dominant_lambda(results, low, high, text):
    """Shares of the searched trials between low and high; that of the baseline, whose λ is 0, does not count."""
    scored = [trial.number for trial in results.ranked() if trial.kind == "search"]
    trials = []
    for trial in results.trials:
        share = low if trial.number == scored[0] else high
        trials.append(
            dataclasses.replace(
                trial, scores={**trial.scores, "grad_share/second_order": share if trial.number else 0.2}
            )
            if trial.number in (0, *scored)
            else trial
        )
    found = share_warnings(dataclasses.replace(results, trials=tuple(trials)))
    assert [text in line and line.startswith("λ₁") for line in found] == ([True] if text else [])


def test_no_warning_of_a_fixed_lambda(results):
    trials = tuple(dataclasses.replace(trial, scores={"grad_share/second_order": 1e-5}) for trial in results.trials)
    fixed = {name: entry for name, entry in results.space.items() if name != "loss.lambda_1"}
    assert share_warnings(dataclasses.replace(results, trials=trials)) and not share_warnings(
        dataclasses.replace(results, trials=trials, space=fixed)
    )


@pytest.mark.parametrize(
    ("spearman", "trials", "later", "warned"),
    [
        (0.3, 40, "end", True),
        (0.6, 40, "end", False),
        (0.3, 5, "end", False),
        (0.3, 40, 12800, False),
        (None, 40, "end", False),
    ],
)
def test_warning_of_a_misleading_rung(results, spearman, trials, later, warned):
    row = {"rung": 6400, "later": later, "trials": trials, "spearman": spearman, "kendall": spearman}
    assert bool(rung_warnings(dataclasses.replace(results, rung_correlation=(row,)))) == warned


def test_warning_if_no_trial_is_feasible(results):
    trials = tuple(
        dataclasses.replace(trial, violations={"nll_token max_above_baseline": 0.1, "seconds max": -3.0})
        for trial in results.trials
    )
    broken = dataclasses.replace(results, trials=trials)
    assert [
        line
        for line in study_warnings(broken)
        if "no trial satisfies" in line and line.endswith("violates NLL (max above baseline)")
    ]
    one = dataclasses.replace(trials[4], violations={"seconds max": -3.0})
    assert dataclasses.replace(results, trials=(*trials[:4], one, *trials[5:])).best.number == 4
