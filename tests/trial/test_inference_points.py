"""Which inference points a checkpoint is scored at: `inference.search_axes`, and what else the space names."""

from __future__ import annotations

import math

import pytest

from uvar_tune.config.loading import validate
from uvar_tune.config.space import searched_entries, searched_inference_entries
from uvar_tune.evaluation.cfg_search import InferencePointSearch

LAMBDA = {"role": "scientific", "type": "float", "low": 0.01, "high": 6, "log": True, "baseline": 0}
TOP_K = {"role": "inference", "type": "categorical", "choices": [0, 16, 32]}


def config_of(space, **inference):
    return validate(
        {
            "inference": {"search_cfg_scales": [0, 0.5, 2], "search_refinements": 8, **inference},
            "space": {"loss.lambda_1": LAMBDA, **space},
        },
        "space.yaml",
    )


def asked(config, fid=lambda point: 1.0):
    """All points of one checkpoint whose FID follows from the point."""
    search, points = InferencePointSearch.from_config(config, searched_inference_entries(config)), []
    while (point := search.ask()) is not None:
        points.append(point)
        search.tell(point, fid(point))
    return points


def test_the_space_alone_decides_over_truncation():
    plain, named = config_of({}), config_of({"inference.top_k": TOP_K})
    assert {frozenset(point) for point in asked(plain)} == {frozenset({"cfg_scale", "seeds"})}
    assert list(searched_entries(named)) == ["loss.lambda_1"]  # it costs no trial
    points = asked(named, lambda point: 2.0 + (point["top_k"] != 16) + abs(math.log1p(point["cfg_scale"]) - 0.4))
    assert {frozenset(point) for point in points} == {frozenset({"cfg_scale", "top_k", "seeds"})}
    assert {point["top_k"] for point in points} == {0, 16, 32} and len(points) <= 3 + 8 + 1
    assert points[-1]["seeds"] == "evaluation" and points[-1]["top_k"] == 16


def test_range_of_the_space_replaces_the_default():
    space = {
        "inference.temperature": {"role": "inference", "type": "float", "low": 0.9, "high": 1.1},
        "inference.top_p": {"role": "inference", "type": "float", "low": 0.8, "high": 1.0},
    }
    points = asked(config_of(space, search_axes=["cfg_scale", "temperature", "cfg_ramp"]))
    assert all(0.9 <= point["temperature"] <= 1.1 and 0.8 <= point["top_p"] <= 1.0 for point in points)
    assert len({point["temperature"] for point in points}) > 2 and len({point["cfg_ramp"] for point in points}) > 2
    start = {
        "cfg_scale": 2.0,
        "temperature": 1.0,
        "cfg_ramp": 1.0,
        "top_p": 0.8,
        "seeds": "selection",
    }  # top_p 0 is outside: its end
    assert points[0] == start


@pytest.mark.parametrize("values", [{"inference.top_k": 16, "inference.cfg_ramp": 0.5, "inference.temperature": 0.9}])
def test_joint_score_uses_the_trials_point(values):
    """What a replay does: one score on seeds B, everything else from the configuration."""
    config = config_of({}).with_values({**values, "inference.cfg_scale": 0.28, "inference.search": "joint"})
    assert asked(config) == [{"cfg_scale": 0.28, "seeds": "evaluation"}]
    assert {name: config.get(name) for name in values} == values
