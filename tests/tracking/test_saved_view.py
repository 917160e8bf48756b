"""The saved view of a study: its state, the tag that stores it, and links; descriptions and differences."""

import base64
import json
import zlib
from urllib.parse import parse_qs, urlparse

import pytest

from tests.helpers.shown_study import shown_config
from uvar_tune.tracking.outbox import DeliveryState, Outbox
from uvar_tune.tracking.parameters import saved_view
from uvar_tune.tracking.presentation import DESCRIPTION, difference_text, fill, literal, study_description
from uvar_tune.tracking.saved_view import plain_page, view_page, view_state, view_tag, view_url

VIEW = saved_view(shown_config("shown", 6), "minimize")
FILTER = "tags.`uvar.study` = 'shown'"
AXES = ["loss.lambda_1", "loss.lambda_2", "loss.reference", "inference.cfg_scale"]


def test_view_orders_by_metric_and_draws_charts():
    state = view_state(FILTER, VIEW)
    assert (state["orderByKey"], state["orderByAsc"], state["searchFilter"]) == ("metrics.`fid`", True, FILTER)
    assert state["selectedColumns"][:3] == ["tags.`uvar.rank`", "metrics.`fid`", "tags.`uvar.difference`"]
    charts = {chart["type"]: chart for chart in state["compareRunCharts"]}
    assert (charts["PARALLEL"]["selectedParams"], charts["PARALLEL"]["selectedMetrics"]) == (AXES, ["fid"])
    scatter = [chart["xaxis"]["key"] for chart in state["compareRunCharts"] if chart["type"] == "SCATTER"]
    assert scatter == ["loss.lambda_1", "loss.lambda_2"]
    sections = {section["uuid"] for section in state["compareRunSections"]}
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} == sections


def test_tag_holds_the_packed_state():
    state = view_state(FILTER, VIEW)
    key, value = view_tag("shown: ranked", "k1", state, 7)
    view = json.loads(value)
    assert key == "mlflow.sharedViewState.k1" and (view["name"], view["createdAt"]) == ("shown: ranked", 7)
    packed = view["state"].removeprefix("deflate;")
    assert json.loads(zlib.decompress(base64.b64decode(packed))) == state


def test_state_too_long_for_a_tag_loses_its_charts():
    columns = [f"params.`some.parameter.{i * 7919 % 1009}.{i}`" for i in range(400)]
    state = view_state(FILTER, {**VIEW, "columns": columns})
    value = json.loads(view_tag("n", "k", state, 0)[1])
    kept = json.loads(zlib.decompress(base64.b64decode(value["state"].removeprefix("deflate;"))))
    assert "compareRunCharts" not in kept and kept["selectedColumns"] == columns and kept["orderByKey"]


def test_link_names_server_view_and_mode(tmp_path):
    outbox = Outbox(tmp_path / "shown" / "mlflow")
    assert view_url("http://host:5000", outbox) is None
    outbox.replace_all([])
    outbox.save_state(DeliveryState(page=view_page("3", "k1")))
    page = "/#/experiments/3/runs?workflowType=machine_learning&viewStateShareKey=k1"
    assert view_url("http://ann:s3cret@host:5000/", outbox) == f"http://host:5000{page}"
    assert view_url("sqlite:///mlflow.db", outbox, charts=True, port=5001) == (
        f"http://127.0.0.1:5001{page}&compareRunsMode=CHART"
    )


def test_plain_link_has_filter_and_order():
    page = plain_page("3", view_state(FILTER, VIEW))
    query = parse_qs(urlparse(page).query)
    assert query["searchFilter"] == [FILTER] and query["orderByKey"] == ["metrics.`fid`"]
    assert query["orderByAsc"] == ["true"] and query["workflowType"] == ["machine_learning"]


@pytest.mark.parametrize("text", ['"quoted" <b>bold</b>', "*stars* [link](x) `code` {{run}}", "🎲 line\n\n# head"])
def test_text_of_users_is_displayed_letter_by_letter(text):
    import html

    shown = literal(text)
    assert not set(shown.replace("&#", "").replace(";", "")) & set('<>"*[]`{}#\n')
    assert html.unescape(shown) == " ".join(text.split())


def test_description_names_answer_run_and_commands():
    text = study_description("shown", "why {{run}}?", "Best: trial 3.", 3)[DESCRIPTION]
    filled = fill({DESCRIPTION: text, "other": "{{run}}"}, "r1", "/experiments/1/runs?x", {"3": "a3", "0": "a0"}, "1")
    assert filled["other"] == "{{run}}" and "run_uuid=r1" in filled[DESCRIPTION]
    compared = "(#/compare-runs?runs=%5B%22a3%22%2C+%22a0%22%5D&experiments=%5B%221%22%5D)"
    assert compared in filled[DESCRIPTION]
    assert "{{" not in filled[DESCRIPTION] and "(#/experiments/1/runs?x)" in filled[DESCRIPTION]
    assert "uvar-tune train ROOT/shown/export/shown-00003.yaml --replay" in filled[DESCRIPTION]


def test_difference_says_whether_it_is_noise():
    assert difference_text(2.143, 2.176) == "-0.033 (-1.5%), one seed, noise unknown"
    assert difference_text(2.143, 2.176, noise_sd=0.1) == "-0.033 (-1.5%), one seed, within noise"
    assert difference_text(1.0, 2.0, noise_sd=0.1) == "-1 (-50.0%), one seed, beyond noise"
    verdict = {"difference": -0.5, "low": -0.7, "high": -0.3, "pairs": 8}
    assert difference_text(1.0, 2.0, verdict, 0.1) == "-0.5 [-0.7, -0.3], 8 pairs of seeds"
