"""MLflow's page in a real browser, on a study that the real tracker wrote: it opens on the answer."""

import re
import time

import pytest

from tests.helpers.browser import save_screenshot
from tests.helpers.shown_study import QUESTION

pytestmark = pytest.mark.server
AXES = ["loss.lambda_1", "loss.lambda_2", "loss.reference", "inference.cfg_scale", "fid"]


def numbers(page, count: int) -> list[int]:
    """Numbers of the trials in the table, from the top, as soon as there are as many."""
    links = page.get_by_role("link", name=re.compile(r"^t\d{3} "))
    links.nth(count - 1).wait_for()
    placed = sorted((link.bounding_box()["y"], link.inner_text()) for link in links.all())
    return [int(name[1:4]) for _, name in placed]


def columns(page, names: list[str]) -> list[str]:
    """These columns of the table, from the left."""
    heads = [(name, page.locator(".ag-header-cell", has_text=re.compile(rf"^\s*{re.escape(name)}"))) for name in names]
    placed = [(head.first.bounding_box()["x"], name) for name, head in heads if head.count()]
    return [name for _, name in sorted(placed)]


def test_link_opens_on_the_ranked_trials(shown, tab):
    page = tab.open(shown.url(), "t000 baseline")
    best = shown.results.ranked()
    page.get_by_text("not distinguishable").or_(page.get_by_text("better")).first.wait_for()
    assert page.get_by_text("shown: ranked").count() >= 1
    assert numbers(page, len(best)) == [trial.number for trial in best]
    wanted, deadline = ["uvar.rank", "fid", "uvar.difference", "uvar.verdict"], time.monotonic() + 30
    while (heads := columns(page, wanted)) != wanted and time.monotonic() < deadline:  # they move once they are there
        page.wait_for_timeout(100)
    assert heads == wanted
    assert page.get_by_text(re.compile(r"pairs of seeds|one seed")).count() >= len(best) - 1
    save_screenshot(page, shown.screenshots, "mlflow_table.png")
    assert tab.errors == []


def test_charts_are_drawn(shown, tab):
    page = tab.open(shown.url(charts=True), "Parallel Coordinates")
    page.locator("text=loss.lambda_1 vs. fid").first.wait_for()
    page.locator(".parcoords .dimension").nth(len(AXES) - 1).wait_for()
    drawn = page.locator("body").inner_text() + " ".join(page.locator("svg text").all_text_contents())
    assert all(axis in drawn for axis in AXES), drawn[:2000]
    save_screenshot(page, shown.screenshots, "mlflow_charts.png")
    page.get_by_text(re.compile(r"^loss \(4\)$|^loss$")).last.scroll_into_view_if_needed()
    page.get_by_text("loss/total").first.wait_for()


def test_description_shows_question_and_commands(shown, tab):
    page = tab.open(f"{shown.root}/#/experiments/1/runs/{shown.run['study']}", "State:")
    page.get_by_text("Show more").click()
    assert QUESTION in page.locator("body").inner_text()  # letter by letter
    assert page.get_by_text(re.compile("--phase confirm")).count() == 1
    compared = page.get_by_role("link", name="best and baseline").get_attribute("href")
    picture = page.locator("img[src*='report/study.png']")
    picture.wait_for()
    page.wait_for_function("image => image.naturalWidth > 100", arg=picture.element_handle())
    save_screenshot(page, shown.screenshots, "mlflow_study.png")
    assert page.get_by_role("link", name="Ranked trials").get_attribute("href").endswith(shown.url().partition("#")[2])
    tab.open(f"{shown.root}/{compared}", "Comparing 2 Runs")


def test_plain_link_has_the_same_order(shown, tab):
    """For servers without saved views."""
    from uvar_tune.tracking.parameters import saved_view
    from uvar_tune.tracking.saved_view import plain_page, view_state

    state = view_state(
        "tags.`uvar.level` = 'trial' and tags.`uvar.phase` = 'search'", saved_view(shown.study.config, "minimize")
    )
    page = tab.open(f"{shown.root}/#{plain_page('1', state)}", "t000 baseline")
    best = [trial.number for trial in shown.results.ranked()]
    assert numbers(page, len(best)) == best
