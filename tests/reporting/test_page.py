import dataclasses
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from tests.helpers.synthetic_study import study, whole_study
from uvar_tune.errors import ConfigError
from uvar_tune.reporting import fields, interactive, sections, write_report
from uvar_tune.reporting.figures import Values, selection_curve, several_axes
from uvar_tune.reporting.study_figure import OFF, axis_of, height_of

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Checks that tags close in order; collects links, scripts and text."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.links, self.scripts, self.words, self.rows = [], [], 0, [], 0
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("src", "href")]
        self.scripts += tag == "script"
        self.rows += tag == "tr"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def read(pages) -> Page:
    return Page(pages["html"].read_text())


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    results = study(tmp_path_factory.mktemp("study"), 24)
    for trial, width in ((results.best, 546), (results.baseline, 3000)):
        (trial.directory / "samples").mkdir()
        Image.fromarray(np.zeros((300, width, 3), np.uint8)).save(trial.directory / "samples" / "000000003200.png")
    return results


def test_page_is_complete_and_self_contained(results, tmp_path):
    pages = write_report(results, tmp_path)
    assert sorted(pages) == ["cfg", "html", "png", "training"] and all(
        path.stat().st_size > 5000 for path in pages.values()
    )
    page, text = read(pages), pages["html"].read_text()
    assert len(page.links) == 5 and all(link.startswith("data:image/png;base64,") for link in page.links)
    assert "http://" not in text and "https://" not in text and page.scripts == 3  # data, library, own
    words = " ".join(page.words)
    for wanted in (
        "Do λ1 and λ2 lower the FID?",
        "Verdict: unconfirmed",
        fields.format_value(results.best.value),
        "feature network",
        "abc123",
        "samples per score",
        "Best: trial",
        "Baseline: trial 0",
    ):
        assert wanted in words
    assert page.rows == 24 + 1 + 2 + 1  # trials and their head, phases and theirs
    for absent in ("Verdicts", "2×2", "Several metrics", "Which parameters", "Noise", "short run"):
        assert absent not in words


def test_page_of_all_phases_has_every_section(tmp_path):
    results = whole_study(tmp_path / "study", 40)
    pages = write_report(results, tmp_path)
    assert sorted(pages) == ["cfg", "html", "importance", "pareto", "png", "training", "verdicts"]
    page, words = read(pages), " ".join(read(pages).words)
    for wanted in (
        "Verdicts on fresh seeds",
        "The 2×2",
        "Several metrics",
        "Which parameters matter",
        "Noise of the baseline",
        "Is the short run a valid proxy?",
        "Cost",
        "replicate 2: diverged",
        "λ₁ has next to no effect",
        "idle places",
    ):
        assert wanted in words
    assert all(link.startswith("data:image/png;base64,") for link in page.links) and len(page.links) == 6


def test_wide_sample_grid_is_downscaled(results, tmp_path):
    assert len(read(write_report(results, tmp_path)).links[-2]) < 60_000
    assert Image.open(results.baseline.directory / "samples" / "000000003200.png").width == 3000


def test_page_escapes_text_and_hides_passwords(results, tmp_path):
    hostile = '<script>alert("$x_{")</script>'
    config = {**results.config, "study": {"question": hostile}}
    reference = {"type": "categorical", "choices": [hostile, "normal", "uniform", "dataset", "semantic"]}
    space = {**results.space, "loss.reference": reference}
    last = results.trials[-1]
    trials = (*results.trials[:-1], dataclasses.replace(last, params={**last.params, "loss.reference": hostile}))
    page = read(write_report(dataclasses.replace(results, config=config, space=space, trials=trials), tmp_path))
    assert page.scripts == 3 and hostile in page.words
    text = write_report(results, tmp_path)["html"].read_text()
    assert "s3cret" not in text and "postgresql://db/optuna" in text


@pytest.mark.parametrize("count", [1, 2])
def test_page_of_smallest_studies(tmp_path, count):
    results = study(tmp_path / "study", count)
    trials = tuple(dataclasses.replace(trial, value=1.0, inference_points=[]) for trial in results.trials)
    pages = write_report(dataclasses.replace(results, trials=trials, protocol={}), tmp_path)
    assert "cfg" not in pages and "Samples" not in " ".join(read(pages).words)


def test_page_of_a_thousand_trials(tmp_path):
    results = whole_study(tmp_path / "study", 1000, direction="maximize")
    pages = write_report(results, tmp_path)
    assert read(pages).rows > 1000 and pages["html"].stat().st_size < 5_000_000
    assert "left out" not in pages["html"].read_text()


def test_page_says_which_trials_are_left_out(tmp_path):
    results = study(tmp_path / "study", 24)
    first = results.trials[-1]
    more = tuple(dataclasses.replace(first, number=number, value=50.0 + number) for number in range(24, 10_000))
    many = dataclasses.replace(results, trials=(*results.trials, *more))
    text = sections.table(many)
    assert "9,000 of 10,000 trials" in text and text.count("data-trial=") == 1000 == len(interactive.shown_trials(many))


def test_unwritable_report_directory_is_an_error(results, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_report(results, tmp_path / "file")


def test_values_put_best_on_top_and_clip_outliers():
    down, up = Values([1.0, 2.0, 3.0], "minimize"), Values([1.0, 2.0, 3.0], "maximize")
    assert (
        [down.position(value) for value in (1.0, 2.0, 3.0)]
        == [1.0, 0.5, 0.0]
        == [1 - up.position(value) for value in (1.0, 2.0, 3.0)]
    )
    many = Values([*np.linspace(1, 2, 20), 500.0], "minimize")
    assert many.clipped and many.position(500.0) == 0.0 and many.position(1.0) == 1.0 and many.position(2.0) > 0.5
    assert not down.clipped and Values([3.0], "minimize").position(3.0) == pytest.approx(0.5)


def test_selection_curve_has_best_score_of_each_scale(results, tmp_path):
    points = [
        {"cfg_scale": cfg, "temperature": temperature, "seeds": seeds, "fid": fid}
        for cfg, temperature, seeds, fid in (
            (1.0, 0.9, "selection", 6.0),
            (1.0, 1.0, "selection", 5.0),
            (2.0, 1.1, "selection", 7.0),
            (1.0, 1.0, "evaluation", 5.5),
        )
    ]
    trials = tuple(dataclasses.replace(trial, inference_points=points) for trial in results.trials)
    several = dataclasses.replace(results, trials=trials)
    assert selection_curve(several, trials[0]) == [(1.0, 5.0), (2.0, 7.0)] == selection_curve(results, trials[0])
    assert several_axes(several) and not several_axes(results)
    assert "(dots; the best" in " ".join(read(write_report(several, tmp_path)).words)


def test_axes_use_the_scale_of_the_search(results):
    axis = axis_of(results, "loss.lambda_1", results.ranked())
    middle = dataclasses.replace(results.best, params={"loss.lambda_1": (0.01 * 6.0) ** 0.5})
    assert height_of(results, axis, middle) == pytest.approx(0.5)
    assert height_of(results, axis, results.baseline) == OFF
    assert height_of(results, axis_of(results, "loss.reference", results.ranked()), results.baseline) == OFF
    assert [label for _, label in axis.ticks] == ["0.01", "0.1", "1", "6"]


def test_integer_axis_has_integer_ticks(results):
    depth = {"role": "nuisance", "type": "int", "low": 1, "high": 4, "log": False}
    trials = [dataclasses.replace(results.best, params={**results.best.params, "model.depth": 3})]
    axis = axis_of(dataclasses.replace(results, space={**results.space, "model.depth": depth}), "model.depth", trials)
    assert [label for _, label in axis.ticks] == ["1", "2", "3", "4"]
    heights = [axis.place(value) for value in (1, 2, 3, 4)]
    assert [height for height, _ in axis.ticks] == pytest.approx(heights) and heights == pytest.approx(
        [0, 1 / 3, 2 / 3, 1]
    )


@pytest.mark.parametrize(("values", "seen"), [((1.0,), ["0.1", "1", "10"]), ((0.5, 2.0), ["0.5", "1", "2"])])
def test_axis_of_selected_scales(results, values, seen):
    """From the lowest to the highest, the whole range where there is one only; no line is offset from its value."""
    entry = {"role": "nuisance", "type": "float", "low": 0.1, "high": 10.0, "log": True}
    trials = [
        dataclasses.replace(results.best, params={**results.best.params, "inference.cfg_scale": value})
        for value in values
    ]
    searched = dataclasses.replace(results, space={**results.space, "inference.cfg_scale": entry})
    axis = axis_of(searched, "inference.cfg_scale", trials)
    assert [label for _, label in axis.ticks] == seen
    assert [height_of(searched, axis, trial) for trial in trials] == [axis.place(value) for value in values]
