"""The search over inference parameters on curves whose best point is known."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uvar_tune.config.space_entry import SpaceEntry
from uvar_tune.errors import ConfigError
from uvar_tune.evaluation.cfg_search import CFG_RAMP, CFG_SCALE, TEMPERATURE, Axis, InferencePointSearch, SearchResult

TOP_K = Axis("top_k", start=0, choices=(0, 16, 32, 64))


def search(score, axes, **settings):
    """Run a search to its end with a function ``score(point, seeds)``."""
    points = InferencePointSearch(axes, **settings)
    while (point := points.ask()) is not None:
        seeds = point["seeds"]
        points.tell(point, score({key: value for key, value in point.items() if key != "seeds"}, seeds))
    return points.result()


def bowl(best: float, steep: float = 1.0):
    """A Fréchet distance over guidance, lowest at ``best``."""
    return lambda point, seeds: 20 * (1 + steep * (math.log1p(point["cfg_scale"]) - math.log1p(best)) ** 2)


def surface(cfg_scale: float, temperature: float):
    """Guidance and temperature sharpen together: a valley that runs aslant, lowest at the point given."""

    def score(point, seeds):
        u = math.log1p(point["cfg_scale"]) - math.log1p(cfg_scale)
        v = math.log(point["temperature"] / temperature)
        return 20 * (1 + (u - 2 * v) ** 2 + 15 * v * v)

    return score


@pytest.mark.parametrize("best", [0.0, 0.2, 0.9, 1.5, 2.2, 4.0, 7.5, 10.0])
def test_guidance_is_found_in_nine_scores(best):
    result = search(bowl(best), [CFG_SCALE])
    assert len(result.points) <= 9
    assert result.value <= 20 * 1.01
    assert abs(math.log1p(result.point["cfg_scale"]) - math.log1p(best)) < 0.1


@pytest.mark.parametrize("best", [0.8, 2.2, 4.0])
def test_golden_section_converges(best):
    excess = [search(bowl(best, steep=100.0), [CFG_SCALE], budget=budget).value / 20 - 1 for budget in (7, 10, 14)]
    assert excess[2] < 0.02 and excess == sorted(excess, reverse=True)


def test_maximising_mirrors_minimising():
    less, more = (
        search(bowl(2.2), [CFG_SCALE]),
        search(lambda p, s: -bowl(2.2)(p, s), [CFG_SCALE], direction="maximize"),
    )
    assert [p["cfg_scale"] for p in less.points] == [p["cfg_scale"] for p in more.points]
    assert less.value == -more.value and less.point == more.point


def test_value_has_no_selection_bias():
    """An outlier under selection seeds decides the point and does not enter the reported value."""

    def lucky(point, seeds):
        return bowl(1.5)(point, seeds) - (15.0 if seeds == "selection" and point["cfg_scale"] == 3.0 else 0.0)

    result = search(lucky, [CFG_SCALE])
    assert result.point == {"cfg_scale": 3.0}
    assert (
        result.value == pytest.approx(bowl(1.5)({"cfg_scale": 3.0}, "evaluation"))
        and result.selection_value == result.value - 15.0
    )
    assert [p["seeds"] for p in result.points] == ["selection"] * (len(result.points) - 1) + ["evaluation"]
    assert all(p["value"] == lucky(p, p["seeds"]) for p in result.points)


def test_flat_curve_keeps_the_start():
    result = search(lambda point, seeds: 5.0, [CFG_SCALE], budget=20)
    assert result.point == {"cfg_scale": CFG_SCALE.start} and len(result.points) == 6


def test_best_at_an_open_bound_is_marked():
    kept = dataclasses.replace(CFG_SCALE, limits=None)
    falling = search(lambda point, seeds: 30 - point["cfg_scale"], [kept])
    assert falling.point == {"cfg_scale": 10.0} and falling.at_bound == ("cfg_scale",)
    rising = search(lambda point, seeds: 30 + point["cfg_scale"], [CFG_SCALE])
    assert rising.point == {"cfg_scale": 0.0} and rising.at_bound == ()  # nothing lies below guidance off
    cold = search(lambda point, seeds: point["temperature"], [dataclasses.replace(TEMPERATURE, limits=None)])
    assert cold.point == {"temperature": 0.7} and cold.at_bound == ("temperature",)


@pytest.mark.parametrize("axes", [[TEMPERATURE], [TEMPERATURE, CFG_SCALE]])
@pytest.mark.parametrize("best", [0.5, 2.0])
def test_range_is_widened_until_the_best_is_inside(axes, best):
    def score(point, seeds):
        return 20 * (1 + math.log(point["temperature"] / best) ** 2 + math.log1p(point.get("cfg_scale", 0.0)) ** 2 / 99)

    result = search(score, axes, budget=9)
    assert abs(math.log(result.point["temperature"] / best)) < 0.25 and result.at_bound == ()
    assert len(result.points) <= 12


def test_widening_ends_and_is_reported():
    result = search(lambda point, seeds: 30 - math.log(point["temperature"]), [TEMPERATURE])
    assert result.point["temperature"] > 2 and result.at_bound == ("temperature",)


def test_stated_range_is_kept():
    axis = Axis.from_entry("temperature", SpaceEntry(role="inference", type="float", low=0.9, high=1.1), start=1.0)
    result = search(lambda point, seeds: 30 - point["temperature"], [axis])
    assert result.point == {"temperature": 1.1} and result.at_bound == ("temperature",)


def test_search_leaves_the_coarse_points():
    axis = Axis("x", low=0.0, high=10.0, start=5.0, coarse=(4.0, 5.0))
    for best in (1.0, 9.0):
        result = search(lambda point, seeds, best=best: 1 + (point["x"] - best) ** 2, [axis], budget=12)
        assert abs(result.point["x"] - best) < 0.3


@given(
    st.lists(st.floats(-1e3, 1e3), min_size=20, max_size=20),
    st.integers(1, 14),
    st.sampled_from(["minimize", "maximize"]),
)
@settings(max_examples=80, deadline=None)
def test_best_observed_point_is_selected(heights, budget, direction):
    scored = []

    def score(point, seeds):
        scored.append((point["cfg_scale"], seeds))
        return heights[len(scored) - 1]

    result = search(score, [CFG_SCALE], direction=direction, budget=budget)
    selecting = [p for p in result.points if p["seeds"] == "selection"]
    assert len(scored) == len(set(scored)) == len(result.points) <= budget + 3 * (budget > 1)
    assert all(0 <= cfg_scale <= 100 and cfg_scale == round(cfg_scale, 2) for cfg_scale, _ in scored)
    assert scored[-1] == (result.point["cfg_scale"], "evaluation") and result.value == heights[len(scored) - 1]
    if selecting:
        pick = min if direction == "minimize" else max
        assert result.selection_value == pick(p["value"] for p in selecting)
        assert selecting[0]["cfg_scale"] == CFG_SCALE.start
    else:
        assert (budget, result.point, result.selection_value, result.at_bound) == (
            1,
            {"cfg_scale": CFG_SCALE.start},
            None,
            (),
        )


@pytest.mark.parametrize("best", [(0.6, 0.9), (2.5, 1.1), (4.0, 1.0)])
def test_two_axes_beat_guidance_alone(best):
    score = surface(*best)
    alone = search(lambda point, seeds: score({**point, "temperature": 1.0}, seeds), [CFG_SCALE], budget=12)
    both = search(score, [CFG_SCALE, TEMPERATURE], budget=12)
    assert both.value < 20 * 1.03 and both.value < alone.value + 0.1


def test_choices_and_ramp_are_searched_jointly():
    def score(point, seeds):
        penalty = {0: 3.0, 16: 8.0, 32: 0.0, 64: 1.0}[point["top_k"]]
        return bowl(2.0)(point, seeds) + penalty + 2 * (point["cfg_ramp"] - 0.5) ** 2

    result = search(score, [CFG_SCALE, CFG_RAMP, TOP_K], budget=16)
    assert len(result.points) <= 16 and {p["top_k"] for p in result.points} <= {0, 16, 32, 64}
    assert result.points[0] == {
        "cfg_scale": 1.5,
        "cfg_ramp": 1.0,
        "top_k": 0,
        "seeds": "selection",
        "value": result.points[0]["value"],
    }
    assert result.value < result.points[0]["value"] - 2.5  # most of the 3.8 that there are to gain


def test_all_choices_of_one_axis_are_scored():
    result = search(lambda point, seeds: abs(point["top_k"] - 30), [TOP_K], budget=9)
    assert [p["top_k"] for p in result.points] == [0, 16, 32, 64, 32] and result.point == {"top_k": 32}


@pytest.mark.parametrize("axes", [[CFG_SCALE], [CFG_SCALE, TEMPERATURE]])
def test_interrupted_search_equals_uninterrupted(axes):
    score = surface(2.5, 1.0)

    def value(point):
        return score({"temperature": 1.0, **point}, "selection")

    whole, cut = InferencePointSearch(axes), InferencePointSearch(axes)
    while (point := whole.ask()) is not None:
        whole.tell(point, value(point))
    for row in whole.result().points[:5]:
        assert cut.ask() == cut.ask() == {key: part for key, part in row.items() if key != "value"}
        cut.tell(cut.ask(), row["value"])
    while (point := cut.ask()) is not None:
        cut.tell(point, value(point))
    assert cut.result() == whole.result()
    assert whole.ask() is None


def test_only_the_pending_point_is_accepted():
    points = InferencePointSearch([CFG_SCALE])
    with pytest.raises(ValueError, match="is not the pending point"):
        points.tell({"cfg_scale": 1.5, "seeds": "selection"}, 1.0)
    point = points.ask()
    with pytest.raises(ValueError, match="is not the pending point"):
        points.tell({**point, "cfg_scale": 2.0}, 1.0)
    with pytest.raises(ValueError, match="nan .* is not a score"):
        points.tell(point, math.nan)
    points.tell(point, 1.0)
    with pytest.raises(ValueError, match="no score under evaluation seeds"):
        points.result()


def test_curve_varies_guidance_alone():
    result = search(surface(2.0, 1.0), [CFG_SCALE, TEMPERATURE])
    assert (result.point["cfg_scale"], result.selection_value) in result.curve()
    assert all(
        any(p["cfg_scale"] == x and p["temperature"] == result.point["temperature"] for p in result.points)
        for x, _ in result.curve()
    )
    one = search(bowl(2.2), [CFG_SCALE])
    assert one.curve() == sorted((p["cfg_scale"], p["value"]) for p in one.points[:-1])
    tree = json.loads(json.dumps(one.as_dict()))
    assert SearchResult(**{**tree, "points": tuple(tree["points"]), "at_bound": tuple(tree["at_bound"])}) == one


def test_given_values_are_not_rounded():
    axis = Axis("x", low=0.1234, high=9.8765, start=1.2345, coarse=(0.1234, 3.3333), scale="log")
    scored = [p["x"] for p in search(lambda point, seeds: (point["x"] - 2) ** 2, [axis]).points]
    assert scored[:3] == [1.2345, 0.1234, 3.3333] and all(x == round(x, 2) for x in scored[3:])
    assert search(lambda point, seeds: 1.0, [axis, TEMPERATURE]).points[0]["x"] == 1.2345


def test_axes_of_space_entries():
    cfg = Axis.from_entry("cfg_scale", SpaceEntry(role="inference", type="float", low=0, high=4), start=1.5)
    assert (cfg.scale, cfg.coarse, cfg.high) == ("log1p", (0, 0.5, 3.0, 4), 4)
    top_k = Axis.from_entry("top_k", SpaceEntry(role="inference", type="int", low=1, high=128, log=True), start=64)
    values = [top_k.from_unit(float(unit)) for unit in np.linspace(0, 1, 50)]
    assert all(isinstance(value, int) for value in values) and (values[0], values[-1]) == (1, 128)
    top_p = Axis.from_entry(
        "top_p", SpaceEntry(role="inference", type="categorical", choices=(0.0, 0.9, 0.95)), start=0.0
    )
    assert [top_p.from_unit(top_p.to_unit(value)) for value in top_p.choices] == [0.0, 0.9, 0.95]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Axis("x", low=1.0, high=1.0, start=1.0), r"x: 1 … 1 is not a linear range"),
        (lambda: Axis("x", low=0.0, high=1.0, scale="log", start=0.5), r"x: 0 … 1 is not a log range"),
        (lambda: Axis("x", low=1.0, high=2.0, start=3.0), r"x: 3 is outside 1 … 2; did you mean '2'"),
        (lambda: Axis("x", low=1.0, high=2.0, start=1.0, coarse=(1.0,)), r"x: start and coarse are all 1"),
        (lambda: Axis("x", start=0.5, scale="logg"), r"x: unknown scale 'logg'.*'log'"),
        (lambda: Axis("top_k", start=8, choices=(0, 16)), r"top_k: unknown start 8 \(one of: 0, 16\)"),
        (lambda: InferencePointSearch([]), "at least one"),
        (lambda: InferencePointSearch([CFG_SCALE, CFG_SCALE]), "each once"),
        (lambda: InferencePointSearch([CFG_SCALE], budget=0), "inference search: 0 scores"),
        (lambda: InferencePointSearch([CFG_SCALE], direction="minimise"), "unknown direction 'minimise'.*'minimize'"),
    ],
)
def test_unusable_axes_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
