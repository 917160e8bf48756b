import dataclasses
import re

import pytest

from tests.helpers.synthetic_study import whole_study
from uvar_tune.reporting import confirmation_sections, fields


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return whole_study(tmp_path_factory.mktemp("study"), 40)


def with_verdict(results, word: str, **changes):
    arm = f"trial {results.best.number}"
    return dataclasses.replace(
        results, verdicts={**results.verdicts, arm: {**results.verdicts[arm], "verdict": word, **changes}}
    )


def rows(html: str) -> list[list[str]]:
    return [
        [re.sub("<[^>]*>", " ", cell).strip() for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row)]
        for row in re.findall(r"<tr[^>]*>(.*?)</tr>", html)
    ]


def test_verdict_table_rows(results):
    table = rows(confirmation_sections.verdicts(results))
    assert [row[0] for row in table[1:]] == [*(one["arm"] for one in fields.sorted_verdicts(results)), "baseline"]
    assert table[1][0] == f"trial {results.best.number}" and table[-2][0] == "SE alone"
    best = dict(zip(*table[:2], strict=True))
    one = results.verdict(results.best)
    assert best["verdict"] == "better" and best["pairs"] == "8" and best["FID"] == fields.format_value(one["value"])
    assert best["difference, 90 % interval"] == f"−{-one['difference']:.3g} [−{-one['low']:.3g}, −{-one['high']:.3g}]"
    assert best["sampled at"] == "CFG 1.5, temperature 0.95" and best["selection bias"].startswith(("+", "−"))


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("better", "better than the baseline"),
        ("worse", "worse than the baseline"),
        ("not distinguishable", "not distinguishable from the baseline"),
    ],
)
def test_headline_has_the_verdict_on_the_best(results, word, text):
    note = confirmation_sections.headline(with_verdict(results, word, seeds_needed=34))
    assert f"Verdict on trial {results.best.number}: {text}" in note
    assert ("About 34 pairs" in note) == (word == "not distinguishable")


def test_headline_explains_a_missing_verdict(results):
    arm = f"trial {results.best.number}"
    others = {name: one for name, one in results.verdicts.items() if name != arm}
    note = confirmation_sections.headline(
        dataclasses.replace(results, verdicts=others, untested={arm: "replicate 1: out_of_memory"})
    )
    assert "Verdict: unconfirmed" in note and "replicate 1: out_of_memory" in note
    better = [name for name, one in others.items() if one["verdict"] == "better"]
    assert "2nd alone" in better and f"Better than the baseline: {', '.join(better)}." in note
    few = confirmation_sections.headline(
        with_verdict(
            results,
            "not distinguishable",
            note="3 pairs: a verdict needs at least 4",
            low=None,
            high=None,
            selection_bias=None,
            seeds_needed=None,
        )
    )
    assert "3 pairs: a verdict needs at least 4." in few and "[" not in few and "estimated" not in few


def test_factorial_has_means_of_the_four_arms(results):
    table = rows(confirmation_sections.factorial(results))
    means = {cell: fields.format_value(results.confirmed[arm]["mean"]) for cell, arm in results.factorial.items()}
    assert [[cell.split()[0] for cell in row[1:]] for row in table[1:]] == [
        [means["none"], means["semantic"]],
        [means["second"], means["both"]],
    ]
    arms = {arm: one for arm, one in results.confirmed.items() if arm != "SE alone"}
    assert (
        confirmation_sections.factorial(dataclasses.replace(results, confirmed=arms)) == ""
    )  # a cell has no score yet


def test_noise_section(results):
    html, noise = confirmation_sections.baseline_noise(results), results.noise
    table = rows(html)
    assert (
        table[1][1] == f"{noise['training']['value'] ** 0.5:.3g}"
        and table[3][1] == f"{noise['replicate']['value'] ** 0.5:.3g}"
    )
    assert [row[0] for row in table[5:]] == ["4 pairs", "8 pairs", "16 pairs", "32 pairs"]
    gap = abs(results.best.value - results.baseline.value)
    shown = [row["pairs"] for row in noise["detectable"] if row["gap"] <= gap]
    assert f"a gap that {shown[0]} pairs would detect" in html
    near = dataclasses.replace(results.baseline, value=results.best.value + 1e-3)
    close = dataclasses.replace(results, trials=(near, *results.trials[1:]))
    assert "less than 32 pairs would detect" in confirmation_sections.baseline_noise(close)


def test_sections_are_empty_without_their_phases(results):
    bare = dataclasses.replace(results, verdicts={}, untested={}, confirmed={}, factorial={}, noise=None)
    assert (
        confirmation_sections.verdicts(bare)
        == confirmation_sections.factorial(bare)
        == confirmation_sections.baseline_noise(bare)
        == ""
    )


def test_hostile_arm_name_is_escaped(results):
    name = "<script>x</script>"
    one = {**results.verdict(results.best), "arm": name}
    html = confirmation_sections.verdicts(dataclasses.replace(results, verdicts={name: one}, untested={name: name}))
    assert "<script" not in html and html.count("&lt;script&gt;") == 3
