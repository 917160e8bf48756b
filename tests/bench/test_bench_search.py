"""The replays of both searches, on synthetic tables with a known answer."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from uvar_tune.bench.search import CFG, joint_entries, per_checkpoint_entries, run, trainings_needed
from uvar_tune.bench.search_table import TABLE, load_table
from uvar_tune.errors import ConfigError

CFG_SCALES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)


def synthetic(configurations: int = 48, steep: float = 1.0) -> list[dict]:
    """FIDs with the best λ1 near 0.3, and for each configuration a best CFG scale of its own."""
    rng, rows = np.random.default_rng(1), []
    for number in range(configurations):
        lambda_1 = float(10 ** rng.uniform(-2, 0.8))
        reference = ("uniform", "dataset", "normal")[number % 3]
        quality = 20 + 3 * math.log10(lambda_1 / 0.3) ** 2 + number % 3 + rng.normal(0, 0.5)
        best = rng.uniform(0.5, 4.0)
        curve = [quality * (1 + steep * (math.log1p(cfg) - math.log1p(best)) ** 2) for cfg in CFG_SCALES]
        luck = 1 + 0.02 * rng.standard_normal((len(CFG_SCALES), 2))
        rows.append(
            {
                "params": {"loss.lambda_1": lambda_1, "loss.reference": reference},
                "seed": number,
                "scores": [[cfg, fid * a, fid * b] for cfg, fid, (a, b) in zip(CFG_SCALES, curve, luck, strict=True)],
            }
        )
    return rows


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"rows": synthetic()}))
    return path


def test_rows_hold_both_searches_for_both_targets(table):
    rows = run(repeats=12, table=table)
    assert [(row["target"], row["search"]) for row in rows] == [
        ("table", "joint"),
        ("table", "per_checkpoint"),
        ("best_cfg", "joint"),
        ("best_cfg", "per_checkpoint"),
    ]
    for joint, profiled in (rows[:2], rows[2:]):
        assert profiled["ratio"] == pytest.approx(joint["median_trainings"] / profiled["median_trainings"], abs=1e-3)
        assert profiled["ratio_low"] <= profiled["ratio"] <= profiled["ratio_high"]
        assert profiled["median_scores"] == 10 * profiled["median_trainings"]
        assert all(
            row["low"] <= row["median_trainings"] <= row["high"] and row["replays"] == 12 for row in (joint, profiled)
        )
    assert (
        rows[1]["ratio"] > 1.5
    )  # each configuration has its own best CFG scale: a training that tries one mostly misses it
    assert rows[0]["goal_fid"] > rows[2]["goal_fid"]
    json.dumps(rows, allow_nan=False)
    timeless = [
        [{k: v for k, v in row.items() if k not in ("load", "cpu_sec")} for row in r]
        for r in (rows, run(repeats=12, table=table))
    ]
    assert timeless[0] == timeless[1]
    assert run(small=True, table=table)[0]["replays"] == 8


def test_flat_curves_give_no_gain(tmp_path):
    rows = [
        {**row, "scores": [[cfg, row["scores"][0][1], row["scores"][0][1]] for cfg in CFG_SCALES]}
        for row in synthetic(24)
    ]
    (tmp_path / "flat.json").write_text(json.dumps({"rows": rows}))
    result = run(repeats=30, table=tmp_path / "flat.json")
    assert 0.4 < result[1]["ratio"] < 2.0


def test_entries_of_both_searches():
    rows = synthetic(3)
    rows[1]["scores"] = [[cfg, 10.0 + (cfg != 2.0), 30.0 + cfg] for cfg in CFG_SCALES]
    joint, profiled = joint_entries(rows), per_checkpoint_entries(rows)
    assert len(joint) == 27 and len(profiled) == 3
    assert joint[9 + 2] == ({**rows[1]["params"], CFG: 1.0}, 31.0)
    assert profiled[1] == (rows[1]["params"], 32.0)  # best on seeds A at 2.0, value of seeds B


def test_trainings_are_counted_until_the_goal():
    """Without replacement every entry comes up once; a random search finds one of k among E after (E + 1)/(k + 1)."""
    order = np.random.default_rng(0).permutation(40)
    entries = [({"x": x / 40, "y": "ab"[x % 2]}, float(i)) for i, x in enumerate(order.tolist())]
    result = np.array([trainings_needed(entries, [39.0, 3.0, -1.0], seed) for seed in range(20)])
    assert (result[:, 0] == 1).all() and (result[:, 2] == 41).all()
    assert 1 <= result[:, 1].min() and result[:, 1].max() <= 40
    assert 41 / 5 / 2 < result[:, 1].mean() < 41 / 5 * 2  # values without order in x: as at random
    assert trainings_needed(entries, [3.0], 7) == trainings_needed(entries, [3.0], 7)


def test_search_learns_from_ordered_values():
    entries = [
        ({"x": i / 200, "y": ((i * 37) % 200) / 200}, (i / 200 - 0.7) ** 2 + ((i * 37) % 200 / 200 - 0.2) ** 2)
        for i in range(200)
    ]
    goal = sorted(value for _, value in entries)[1]  # 2 of 200: at random after 67 on average
    assert np.median([trainings_needed(entries, [goal], seed)[0] for seed in range(10)]) < 40


def _broken(change) -> str:
    rows = synthetic(4)
    change(rows)
    return json.dumps({"rows": rows})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "is not JSON"),
        ("{}", "at least two rows"),
        ("[]", "at least two rows"),
        (_broken(lambda rows: rows[2].pop("seed")), r"row 2: is not \{params, seed, scores"),
        (_broken(lambda rows: rows[1]["scores"][3].pop()), r"row 1: each score is"),
        (_broken(lambda rows: rows[1]["scores"][3].__setitem__(2, math.nan)), r"row 1: each score is .* all finite"),
        (_broken(lambda rows: rows[3]["params"].update(other=1)), r"row 3: parameters .*'other'"),
        (_broken(lambda rows: rows[3]["scores"].pop()), r"row 3: the CFG scales are not those of row 0"),
    ],
)
def test_malformed_tables_are_refused_with_their_row(tmp_path, text, message):
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_table(path)


def test_packaged_table():
    rows = load_table()
    assert len(rows) == 48 and {len(row["scores"]) for row in rows} == {9}
    assert len({row["seed"] for row in rows}) == 48 and len({json.dumps(row["params"]) for row in rows}) == 48
    assert all(row["params"]["loss.lambda_1"] > 0 for row in rows)  # the baseline is none of them
    about = json.loads(TABLE.read_text())["about"]
    assert about["protocol"]["samples"] == 500 and about["made_by"]["versions"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"from_study": "any"}, "no file is named for it"),
        ({"root": "runs"}, "none is named"),
        ({"from_study": "nowhere", "root": "ROOT", "table": "table.json"}, "no study 'nowhere'"),
    ],
)
def test_table_needs_a_study_and_a_file(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        run(**{name: str(tmp_path) if value == "ROOT" else value for name, value in options.items()})


def test_missing_table_is_named(tmp_path):
    with pytest.raises(ConfigError, match="nowhere.json: cannot be read: No such file"):
        run(table=tmp_path / "nowhere.json")
