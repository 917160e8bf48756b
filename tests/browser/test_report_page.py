"""The report in a real browser: the brush filters the table, nothing is requested, names stay text, axe-core agrees."""

import csv
import dataclasses
import os

import numpy as np
import pytest
from PIL import Image

from tests.helpers.browser import Page, save_screenshot
from tests.helpers.synthetic_study import whole_study
from uvar_tune.reporting import write_report

HOSTILE = "\"><img src=x onerror=alert(1)> 🐟 </script><b>'q'"


@pytest.fixture(scope="module")
def written(chromium, tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    results = whole_study(root / "study", 30)
    best = results.best
    (best.directory / "samples").mkdir()
    Image.fromarray(np.zeros((90, 180, 3), np.uint8)).save(best.directory / "samples" / "000000003200.png")
    reference = {**results.space["loss.reference"], "choices": [HOSTILE, "normal", "uniform", "dataset", "semantic"]}
    trials = tuple(
        dataclasses.replace(one, params={**one.params, "loss.reference": HOSTILE}) if one is best else one
        for one in results.trials
    )
    results = dataclasses.replace(
        results,
        config={**results.config, "study": {"question": HOSTILE}},
        space={**results.space, "loss.reference": reference},
        trials=trials,
    )
    return results, write_report(results, root / "out")["html"]


@pytest.fixture(params=["light", "dark"])
def report(request, chromium, written):
    tab = Page(chromium, width=1200)
    seen = []
    tab.page.on("request", lambda one: seen.append(one.url) if not one.url.startswith(("data:", "blob:")) else None)
    tab.page.on("console", lambda one: tab.errors.append(one.text) if one.type == "error" else None)
    tab.page.on("dialog", lambda one: tab.errors.append(one.message))
    tab.page.emulate_media(color_scheme=request.param)
    tab.open(written[1].as_uri(), "Verdict on trial")
    tab.page.wait_for_selector("html[data-ready=yes]")
    yield tab.page
    assert tab.errors == [] and seen == [written[1].as_uri()]
    save_screenshot(tab.page, os.environ.get("UVAR_SCREENSHOTS"), f"report_{request.param}.png")
    tab.close()


def shown(page) -> list[int]:
    return [int(row.get_attribute("data-trial")) for row in page.locator("#trials tbody tr:visible").all()]


def test_page_is_accessible(report, written):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe-playwright-python here")
    found = axe.Axe().run(report).response["violations"]
    assert [(one["id"], [node["html"][:200] for node in one["nodes"]]) for one in found] == []
    assert report.locator("h1 + .question").inner_text() == HOSTILE


@pytest.mark.parametrize("report", ["light"], indirect=True)
def test_table_follows_brush_and_search(report, written, tmp_path):
    results, _ = written
    everyone = shown(report)
    assert len(everyone) == len(results.trials)
    if report.locator("#chart-png-0 .axis-brush").count():  # absent without WebGL
        axis = report.locator("#chart-png-0 .axis-brush .background").last
        axis.scroll_into_view_if_needed()
        box = axis.bounding_box()
        across = box["x"] + box["width"] / 2
        report.mouse.move(across, box["y"] + 0.02 * box["height"])
        report.mouse.down()
        report.mouse.move(across, box["y"] + 0.3 * box["height"], steps=5)
        report.mouse.up()
        report.wait_for_function("n => document.querySelectorAll('#trials tbody tr:not([hidden])').length < n", arg=20)
        kept, ranked = shown(report), [trial.number for trial in results.ranked()]
        assert results.best.number in kept and set(kept) < set(ranked)
        worst_kept = max(trial.value for trial in results.ranked() if trial.number in kept)
        best_left = min(trial.value for trial in results.ranked() if trial.number not in kept)
        assert worst_kept <= best_left  # the brush is on the study metric
        report.get_by_role("button", name="Clear selection").click()
        assert shown(report) == everyone
    report.get_by_role("searchbox").fill("fid<5.5 kind=search")
    expected = [one.number for one in results.trials if one.kind == "search" and (one.value or 9) < 5.5]
    assert sorted(shown(report)) == sorted(expected)
    with report.expect_download() as waiting:
        report.get_by_role("button", name="Download CSV").click()
    waiting.value.save_as(tmp_path / "table.csv")
    rows = list(csv.DictReader((tmp_path / "table.csv").open(encoding="utf-8")))
    assert sorted(int(row["trial"]) for row in rows) == sorted(expected)
    assert HOSTILE in {row["loss.reference"] for row in rows}


@pytest.mark.parametrize("report", ["light"], indirect=True)
def test_trial_opens_from_the_keyboard(report, written):
    best = written[0].best.number
    button = report.get_by_role("button", name=f"Details of trial {best}", exact=True)
    button.focus()
    report.keyboard.press("Enter")
    dialog = report.get_by_role("dialog")
    assert f"--trial {best} --unconfirmed" in dialog.inner_text() and HOSTILE in dialog.inner_text()
    dialog.locator(".main-svg").nth(2).wait_for()
    assert dialog.get_by_role("img", name=f"samples of trial {best}").count() == 1
    report.keyboard.press("Escape")
    assert not dialog.is_visible()
    head = report.locator("#trials th").first
    head.focus()
    report.keyboard.press("Enter")
    report.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
