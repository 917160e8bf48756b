"""Several grids under different seeds as replicates of each other: pairs, verdicts, what cannot be pooled, what is written."""

from __future__ import annotations

import csv
import itertools
import math

import numpy as np
import pytest
from scipy import stats

from tests.helpers.search_cases import ended, scored
from uvar_tune.analysis.pooled import mean_with_half_width, pool
from uvar_tune.config.loading import validate
from uvar_tune.errors import ConfigError
from uvar_tune.reporting.pooled import pooled_rows, pooled_table, write_pooled
from uvar_tune.search.load import load_results
from uvar_tune.search.study import Search
from uvar_tune.study_dir import StudyDirectory

ARM = {"role": "scientific", "type": "categorical"}
SPACE = {
    "loss.lambda_1": {**ARM, "role": "fixed", "choices": [0.05]},
    "loss.reference": {**ARM, "choices": ["normal", "uniform"]},
    "loss.discrepancy": {**ARM, "choices": ["wasserstein", "kl"]},
}
ARMS = ["normal, wasserstein", "normal, kl", "uniform, wasserstein", "uniform, kl"]
EFFECT = {"normal": 1.0, "uniform": -0.5}  # planted, in FID over the baseline's


def grid(root, seed, *, trials=5, lost=(), protocol=None, name=None, **changes):
    """(configuration, results) of a study whose FID is a seed's own level, plus the effect of the reference, plus a little."""
    tree = {
        "study": {"name": name or f"grid-{seed}", "seed": seed, "sampler": "grid", "trials": 5},
        "loss": {"lambda_unit": "share"},
        "space": SPACE,
    }
    config = validate(tree, "grid.yaml").with_values(changes)
    files = StudyDirectory(root, config.study.name)
    files.create()
    search, rng = Search(config, files.storage_url(config)), np.random.default_rng(seed)
    for _ in range(trials):
        proposal = search.ask()
        if proposal.number in lost:
            search.prune(proposal.number, ended("diverged"))
            continue
        effect = EFFECT[proposal.values["loss.reference"]] if proposal.number else 0.0
        fid = 5 + seed + effect + 0.01 * rng.standard_normal()
        weight = {"loss.lambda_1": 0.5 + seed if proposal.number else 0.0}
        scores = {"fid": fid, "entropy": 2.0 + effect, "ece_token": 0.01 * (1 + seed), "grad_share/second_order": 0.05}
        search.complete(
            proposal.number,
            scored(
                fid,
                {
                    "scores": scores,
                    "effective_parameters": weight,
                    "protocol": protocol or {"samples": 1000},
                    "inference_parameters": {"inference.cfg_scale": 0.5},
                },
            ),
        )
    return config, load_results(config, files, search)


@pytest.fixture
def four(tmp_path):
    return [grid(tmp_path, seed) for seed in range(4)]


def test_each_study_is_one_pair_of_every_arm(four):
    pooled = pool(four)
    assert list(pooled.arms) == ["baseline", *ARMS] and pooled.studies == {f"grid-{seed}": seed for seed in range(4)}
    for arm, verdict in pooled.verdicts.items():
        pairs = [pooled.arms[arm][seed].value - pooled.arms["baseline"][seed].value for seed in range(4)]
        assert verdict.difference == pytest.approx(np.mean(pairs)) and verdict.pairs == 4
        assert verdict.difference == pytest.approx(
            EFFECT[arm.split(",")[0]], abs=0.05
        )  # the levels of the seeds cancel
    assert [pooled.verdicts[arm].verdict for arm in ARMS] == ["worse", "worse", "better", "better"]
    assert not pooled.untested


def test_three_pairs_give_no_verdict(four):
    pooled = pool(four[:3])
    assert {one.verdict for one in pooled.verdicts.values()} == {"not distinguishable"}
    assert "3 pairs: a verdict needs at least 4" in pooled_table(pooled).caption


def test_pooled_arm_without_all_scores_is_untested(tmp_path):
    pooled = pool([grid(tmp_path, 0), grid(tmp_path, 1, lost=(2,)), grid(tmp_path, 2, trials=4)])
    assert list(pooled.arms) == ["baseline", ARMS[0], ARMS[2]]
    assert pooled.untested == {ARMS[1]: "grid-1, trial 2: diverged", ARMS[3]: "grid-2 has not run it yet"}
    assert [row[0] for row in pooled_rows(pooled)[1]] == list(pooled.arms)
    assert "No verdict on normal, kl: grid-1, trial 2: diverged." in pooled_table(pooled).caption
    with pytest.raises(ConfigError, match="nothing to compare: baseline .grid-4, trial 0: diverged"):
        pool([grid(tmp_path, 3), grid(tmp_path, 4, trials=1, lost=(0,))])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"study.seed": 0}, "'grid-0' and 'other' have the same study.seed 0"),
        ({"study.sampler": "random"}, "draws new training seeds for each trial"),
        ({"training.images": 64_000}, "not a replicate of 'grid-0': training.images was 32000, is 64000"),
        ({"protocol": {"samples": 500}}, "protocol.samples is 500, and 1000 in study 'grid-0'"),
    ],
)
def test_what_is_no_replicate_is_refused(tmp_path, changes, message):
    protocol = changes.get("protocol")
    changes = {name: value for name, value in changes.items() if name != "protocol"}
    other = grid(tmp_path, 1, name="other", protocol=protocol, **changes)
    with pytest.raises(ConfigError, match=message):
        pool([grid(tmp_path, 0), other])


def test_one_study_alone_is_refused(four):
    with pytest.raises(ConfigError, match="--study: a single study cannot be pooled"):
        pool(four[:1])


def test_the_interval_of_a_mean_is_students():
    values = [3.0, 4.0, 6.5]
    mean, reach = mean_with_half_width(values)
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert (mean - reach, mean + reach) == (pytest.approx(low), pytest.approx(high))


def test_what_is_written(four, tmp_path):
    pages = write_pooled(pool(four), tmp_path / "report")
    rows = list(csv.DictReader(pages["trials"].open()))
    assert [(row["arm"], int(row["seed"])) for row in rows] == list(itertools.product(["baseline", *ARMS], range(4)))
    assert all(math.isclose(float(row["ece_token"]), 0.01 * (1 + int(row["seed"]))) for row in rows)
    assert [float(row["loss.lambda_1 (effective)"]) for row in rows[4:8]] == [0.5, 1.5, 2.5, 3.5]
    lines = pages["table"].read_text().splitlines()
    assert lines[0].startswith(
        "| arm | FID | difference, 90 % interval | p (Holm) | verdict | λ₁ (effective) | entropy | ECE"
    )
    assert len({line.count("|") for line in lines[:7]}) == 1 and lines[2].startswith("| baseline | ")
    assert pages["chart"].read_bytes().startswith(b"\x89PNG")
