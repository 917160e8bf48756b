"""The search over inference parameters on curves whose best point is known."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uvar_tune.config.space_entry import SpaceEntry
from uvar_tune.errors import ConfigError
from uvar_tune.evaluation.axis import CFG_RAMP, CFG_SCALE, TEMPERATURE, Axis
from uvar_tune.evaluation.cfg_search import InferenceSearch, Profile, profile

TOP_K = Axis("top_k", start=0, choices=(0, 16, 32, 64))


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
def test_guidance_is_found_within_nine_scores(best):
    found = profile(bowl(best), [CFG_SCALE])
    assert len(found.points) <= 9
    assert found.value <= 20 * 1.01
    assert abs(math.log1p(found.chosen["cfg_scale"]) - math.log1p(best)) < 0.1


@pytest.mark.parametrize("best", [0.8, 2.2, 4.0])
def test_golden_section_closes_in_with_more_scores(best):
    excess = [profile(bowl(best, steep=100.0), [CFG_SCALE], budget=budget).value / 20 - 1 for budget in (7, 10, 14)]
    assert excess[2] < 0.02 and excess == sorted(excess, reverse=True)


def test_score_to_maximise_is_the_mirror_image():
    less, more = (
        profile(bowl(2.2), [CFG_SCALE]),
        profile(lambda p, s: -bowl(2.2)(p, s), [CFG_SCALE], direction="maximize"),
    )
    assert [p["cfg_scale"] for p in less.points] == [p["cfg_scale"] for p in more.points]
    assert less.value == -more.value and less.chosen == more.chosen


def test_chosen_on_seeds_a_and_told_on_seeds_b():
    """The luck of seeds A at one point decides the choice and does not enter the value."""

    def lucky(point, seeds):
        return bowl(1.5)(point, seeds) - (15.0 if seeds == "a" and point["cfg_scale"] == 3.0 else 0.0)

    found = profile(lucky, [CFG_SCALE])
    assert found.chosen == {"cfg_scale": 3.0}
    assert found.value == pytest.approx(bowl(1.5)({"cfg_scale": 3.0}, "b")) and found.value_a == found.value - 15.0
    assert [p["seeds"] for p in found.points] == ["a"] * (len(found.points) - 1) + ["b"]
    assert all(p["value"] == lucky(p, p["seeds"]) for p in found.points)


def test_flat_curve_costs_the_coarse_points_and_keeps_the_start():
    found = profile(lambda point, seeds: 5.0, [CFG_SCALE], budget=20)
    assert found.chosen == {"cfg_scale": CFG_SCALE.start} and len(found.points) == 6


def test_monotone_curves_end_at_the_range_and_only_the_open_end_warns():
    falling = profile(lambda point, seeds: 30 - point["cfg_scale"], [CFG_SCALE])
    assert falling.chosen == {"cfg_scale": 10.0} and falling.at_bound == ("cfg_scale",)
    rising = profile(lambda point, seeds: 30 + point["cfg_scale"], [CFG_SCALE])
    assert rising.chosen == {"cfg_scale": 0.0} and rising.at_bound == ()  # nothing lies below guidance off
    cold = profile(lambda point, seeds: point["temperature"], [TEMPERATURE])
    assert cold.chosen == {"temperature": 0.7} and cold.at_bound == ("temperature",)


def test_search_goes_on_beyond_the_coarse_points_on_both_sides():
    axis = Axis("x", low=0.0, high=10.0, start=5.0, coarse=(4.0, 5.0))
    for best in (1.0, 9.0):
        found = profile(lambda point, seeds, best=best: 1 + (point["x"] - best) ** 2, [axis], budget=12)
        assert abs(found.chosen["x"] - best) < 0.3


@given(
    st.lists(st.floats(-1e3, 1e3), min_size=20, max_size=20),
    st.integers(1, 14),
    st.sampled_from(["minimize", "maximize"]),
)
@settings(max_examples=80, deadline=None)
def test_whatever_the_curve_the_best_observed_is_chosen(heights, budget, direction):
    asked = []

    def score(point, seeds):
        asked.append((point["cfg_scale"], seeds))
        return heights[len(asked) - 1]

    found = profile(score, [CFG_SCALE], direction=direction, budget=budget)
    on_a = [p for p in found.points if p["seeds"] == "a"]
    assert len(asked) == len(set(asked)) == len(found.points) <= budget
    assert all(0 <= cfg_scale <= 10 and cfg_scale == round(cfg_scale, 2) for cfg_scale, _ in asked)
    assert asked[-1] == (found.chosen["cfg_scale"], "b") and found.value == heights[len(asked) - 1]
    if on_a:
        pick = min if direction == "minimize" else max
        assert found.value_a == pick(p["value"] for p in on_a)
        assert on_a[0]["cfg_scale"] == CFG_SCALE.start
    else:
        assert (budget, found.chosen, found.value_a, found.at_bound) == (1, {"cfg_scale": CFG_SCALE.start}, None, ())


@pytest.mark.parametrize("best", [(0.6, 0.9), (2.5, 1.1), (4.0, 1.0)])
def test_guidance_and_temperature_together_beat_guidance_alone(best):
    score = surface(*best)
    alone = profile(lambda point, seeds: score({**point, "temperature": 1.0}, seeds), [CFG_SCALE], budget=12)
    both = profile(score, [CFG_SCALE, TEMPERATURE], budget=12)
    assert both.value < 20 * 1.03 and both.value < alone.value + 0.1


def test_axes_with_choices_and_a_ramp_are_searched_with_the_others():
    def score(point, seeds):
        penalty = {0: 3.0, 16: 8.0, 32: 0.0, 64: 1.0}[point["top_k"]]
        return bowl(2.0)(point, seeds) + penalty + 2 * (point["cfg_ramp"] - 0.5) ** 2

    found = profile(score, [CFG_SCALE, CFG_RAMP, TOP_K], budget=16)
    assert len(found.points) <= 16 and {p["top_k"] for p in found.points} <= {0, 16, 32, 64}
    assert found.points[0] == {
        "cfg_scale": 1.5,
        "cfg_ramp": 1.0,
        "top_k": 0,
        "seeds": "a",
        "value": found.points[0]["value"],
    }
    assert found.value < found.points[0]["value"] - 2.5  # most of the 3.8 that there are to gain


def test_one_axis_of_choices_is_scored_through():
    found = profile(lambda point, seeds: abs(point["top_k"] - 30), [TOP_K], budget=9)
    assert [p["top_k"] for p in found.points] == [0, 16, 32, 64, 32] and found.chosen == {"top_k": 32}


@pytest.mark.parametrize("axes", [[CFG_SCALE], [CFG_SCALE, TEMPERATURE]])
def test_interrupted_equals_uninterrupted(axes):
    score = surface(2.5, 1.0)

    def value(point):
        return score({"temperature": 1.0, **point}, "a")

    whole, cut = InferenceSearch(axes), InferenceSearch(axes)
    while (point := whole.ask()) is not None:
        whole.tell(point, value(point))
    for row in whole.result().points[:5]:
        assert cut.ask() == cut.ask() == {key: part for key, part in row.items() if key != "value"}
        cut.tell(cut.ask(), row["value"])
    while (point := cut.ask()) is not None:
        cut.tell(point, value(point))
    assert cut.result() == whole.result()
    assert whole.ask() is None


def test_only_what_was_asked_and_finite_scores_are_told():
    search = InferenceSearch([CFG_SCALE])
    with pytest.raises(ValueError, match="was not asked"):
        search.tell({"cfg_scale": 1.5, "seeds": "a"}, 1.0)
    point = search.ask()
    with pytest.raises(ValueError, match="was not asked"):
        search.tell({**point, "cfg_scale": 2.0}, 1.0)
    with pytest.raises(ValueError, match="nan .* is not a score"):
        search.tell(point, math.nan)
    search.tell(point, 1.0)
    with pytest.raises(ValueError, match="not been told on seeds b"):
        search.result()


def test_curve_holds_the_points_that_differ_in_guidance_alone():
    found = profile(surface(2.0, 1.0), [CFG_SCALE, TEMPERATURE])
    assert (found.chosen["cfg_scale"], found.value_a) in found.curve()
    assert all(
        any(p["cfg_scale"] == x and p["temperature"] == found.chosen["temperature"] for p in found.points)
        for x, _ in found.curve()
    )
    one = profile(bowl(2.2), [CFG_SCALE])
    assert one.curve() == sorted((p["cfg_scale"], p["value"]) for p in one.points[:-1])
    tree = json.loads(json.dumps(one.as_dict()))
    assert Profile(**{**tree, "points": tuple(tree["points"]), "at_bound": tuple(tree["at_bound"])}) == one


def test_given_values_are_asked_as_they_are():
    axis = Axis("x", low=0.1234, high=9.8765, start=1.2345, coarse=(0.1234, 3.3333), scale="log")
    asked = [p["x"] for p in profile(lambda point, seeds: (point["x"] - 2) ** 2, [axis]).points]
    assert asked[:3] == [1.2345, 0.1234, 3.3333] and all(x == round(x, 2) for x in asked[3:])
    assert profile(lambda point, seeds: 1.0, [axis, TEMPERATURE]).points[0]["x"] == 1.2345


def test_axes_of_space_entries():
    cfg = Axis.of("cfg_scale", SpaceEntry(role="inference", type="float", low=0, high=4), start=1.5)
    assert (cfg.scale, cfg.coarse, cfg.high) == ("log1p", (0, 0.5, 3.0, 4), 4)
    top_k = Axis.of("top_k", SpaceEntry(role="inference", type="int", low=1, high=128, log=True), start=64)
    values = [top_k.from_unit(float(unit)) for unit in np.linspace(0, 1, 50)]
    assert all(isinstance(value, int) for value in values) and (values[0], values[-1]) == (1, 128)
    top_p = Axis.of("top_p", SpaceEntry(role="inference", type="categorical", choices=(0.0, 0.9, 0.95)), start=0.0)
    assert [top_p.from_unit(top_p.to_unit(value)) for value in top_p.choices] == [0.0, 0.9, 0.95]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Axis("x", low=1.0, high=1.0, start=1.0), r"x: 1 … 1 is no linear range"),
        (lambda: Axis("x", low=0.0, high=1.0, scale="log", start=0.5), r"x: 0 … 1 is no log range"),
        (lambda: Axis("x", low=1.0, high=2.0, start=3.0), r"x: 3 lies outside 1 … 2; did you mean '2'"),
        (lambda: Axis("x", low=1.0, high=2.0, start=1.0, coarse=(1.0,)), r"x: start and coarse are all 1"),
        (lambda: Axis("x", start=0.5, scale="logg"), r"x: unknown scale 'logg'.*'log'"),
        (lambda: Axis("top_k", start=8, choices=(0, 16)), r"top_k: unknown start 8 \(one of: 0, 16\)"),
        (lambda: InferenceSearch([]), "at least one"),
        (lambda: InferenceSearch([CFG_SCALE, CFG_SCALE]), "each once"),
        (lambda: InferenceSearch([CFG_SCALE], budget=0), r"profile.budget: 0 scores"),
        (lambda: InferenceSearch([CFG_SCALE], direction="minimise"), "unknown direction 'minimise'.*'minimize'"),
    ],
)
def test_what_cannot_be_searched_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
