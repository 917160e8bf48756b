import dataclasses

import pytest

from tests.helpers.synthetic_study import study
from uvar_tune.reporting.costs import ALL, EARLIER, IDLE, Row, costs


@pytest.fixture
def results(tmp_path):
    return study(tmp_path, 30)


def test_cpu_seconds_add_up(results):
    scored = len(results.ranked())
    assert costs(results) == [Row("training", None, 42.0 * scored, 42.0), Row("evaluation", None, 21.0 * scored, 21.0)]
    (results.directory / "cost.jsonl").write_text(
        '{"time": 1.0, "all processes": 100.0}\n{"time": 2.0, "all processes": 20.5}\n{"time": 3.0, "all pro'  # a kill cut the last line
    )
    assert costs(results)[-1] == Row(ALL, None, 120.5, None)


def test_wall_time_adds_up(results):
    """A trial that worked for 60 s, two thirds of its CPU seconds in training; one without a record."""
    trials = [
        dataclasses.replace(
            trial,
            wall_sec={"start-up": 4.0, "work": 60.0, "earlier": 0.0},
            cpu_sec={"start-up": 3.0, "training": 42.0, "evaluation": 21.0},
        )
        for trial in results.trials[:3]
    ]
    trials.append(
        dataclasses.replace(results.trials[3], cpu_sec={}, wall_sec={"start-up": 0.0, "work": 9.0, "earlier": 25.0})
    )
    found = {row.phase: row for row in costs(dataclasses.replace(results, trials=tuple(trials), idle_sec=100.0))}
    seconds = {phase: row.wall_sec for phase, row in found.items()}
    assert seconds == {
        "start-up": 12.0,
        "training": pytest.approx(3 * 40 + 6),
        "evaluation": pytest.approx(3 * 20 + 3),
        EARLIER: 25.0,
        IDLE: 100.0,
    }
    assert sum(seconds.values()) == pytest.approx(3 * 64 + 34 + 100) and found["start-up"].cpu_sec == 9.0
