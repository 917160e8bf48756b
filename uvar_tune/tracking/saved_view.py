"""The saved view of a study on MLflow's page: its trials, best first, with columns and charts; and the links to it.

A view is an experiment tag ``mlflow.sharedViewState.KEY``. A server that does not store it, or whose page does not know
its format, gets the same filter and order as parameters of the link.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from typing import Any
from urllib.parse import quote, urlencode

from uvar_tune.io.uri import redact_url
from uvar_tune.tracking.metric_names import metric_key
from uvar_tune.tracking.outbox import Outbox

MIN_SERVER = (3, 13)  # the first MLflow whose page reads views of this format
LOCAL_PORT = 5000  # where `mlflow ui` and `uvar-tune ui` listen
_MAX_TAG_LENGTH = 5000  # characters: the least of the limits of MLflow's servers
_LAMBDAS = ("loss.lambda_1", "loss.lambda_2")
_LOSSES = ("loss/total", "loss/ce")
_MAX_AXES, _MAX_CURVES = 8, 10
_FIRST_COLUMNS = ("attributes.`Run Name`",)
_WIDTH = 110  # of a column in pixels, unless it is one of these
_WIDTHS = {
    "attributes.`Run Name`": 260,
    "tags.`uvar.rank`": 80,
    "tags.`uvar.difference`": 280,
    "tags.`uvar.verdict`": 130,
    "tags.`uvar.kind`": 80,
}
_NO_FACETS = {
    "startTime": "ALL",
    "lifecycleFilter": "Active",
    "datasetsFilter": [],
    "modelVersionFilter": "All Runs",
}


def view_state(search_filter: str, operation: dict[str, Any]) -> dict[str, Any]:
    """The state of a saved view of MLflow's run table.

    Args:
        search_filter: MLflow's search expression.
        operation: the call of `RunLogger.save_view`: metric, direction, columns, axes.
    """
    metric = metric_key(operation["metric"])
    charts, sections = _charts(metric, operation.get("axes", []))
    return {
        "searchFilter": search_filter,
        "orderByKey": f"metrics.`{metric}`",
        "orderByAsc": operation["direction"] == "minimize",
        **_NO_FACETS,
        "selectedColumns": operation["columns"],
        "columnOrder": [*_FIRST_COLUMNS, *operation["columns"]],
        "columnWidths": {name: _WIDTHS.get(name, _WIDTH) for name in (*_FIRST_COLUMNS, *operation["columns"])},
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": charts,
        "compareRunSections": sections,
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": True,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }


def _charts(metric: str, axes: list[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Parallel coordinates of the axes and the metric, the metric over each λ, and loss curves."""
    axes = axes[:_MAX_AXES]
    charts = [_chart("PARALLEL", "search", selectedParams=axes, selectedMetrics=[metric], showAllRuns=True)]
    over = [name for name in axes if name in _LAMBDAS] or [name for name in axes if not name.endswith("reference")][:2]
    charts += [
        _chart(
            "SCATTER",
            "weights",
            xaxis={"key": name, "type": "PARAM"},
            yaxis={"key": metric, "type": "METRIC"},
            runsCountToCompare=100,
        )
        for name in over
    ]
    charts += [
        _chart(
            "LINE",
            "loss",
            metricKey=name,
            selectedMetricKeys=[name],
            xAxisKey="step",
            scaleType="linear",
            useGlobalXaxisKey=True,
            useGlobalLineSmoothing=True,
            runsCountToCompare=_MAX_CURVES,
        )
        for name in _LOSSES
    ]
    plain = {"display": True, "isReordered": True, "deleted": False, "isGenerated": False, "cardHeight": 400}
    sections = [
        {"uuid": "search", "name": f"All trials: parameters and {metric}", "columns": 1, **plain},
        {"uuid": "weights", "name": f"{metric} over single parameters", "columns": 2, **plain},
        {"uuid": "loss", "name": "loss", "columns": 2, **plain},  # MLflow adds its own charts of `loss/…`
    ]
    return charts, sections


def _chart(kind: str, section: str, **fields: Any) -> dict[str, Any]:
    chart = {"type": kind, "metricSectionId": section, "deleted": False, "isGenerated": False, **fields}
    return {"uuid": hashlib.sha256(json.dumps(chart, sort_keys=True).encode()).hexdigest()[:16], **chart}


def view_tag(name: str, key: str, state: dict[str, Any], time_ms: int) -> tuple[str, str]:
    """The experiment tag (key, value) that stores a saved view; charts that do not fit into a tag are left out."""
    for fields in ((), ("compareRunCharts", "compareRunSections")):
        kept = {field: value for field, value in state.items() if field not in fields}
        packed = base64.b64encode(zlib.compress(json.dumps(kept).encode(), 9)).decode()
        view = {"name": name, "createdAt": time_ms, "updatedAt": time_ms, "state": f"deflate;{packed}"}
        if len(value := json.dumps(view)) <= _MAX_TAG_LENGTH:
            break
    return f"mlflow.sharedViewState.{key}", value


def view_key(study: str, fingerprint: str) -> str:
    """Key of a study's saved view among those of its experiment."""
    return hashlib.sha256(f"{fingerprint}/{study}".encode()).hexdigest()[:16]


def view_page(experiment_id: str, key: str) -> str:
    """The page of a saved view, as the part of its address behind ``#``."""
    return f"/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={key}"


def plain_page(experiment_id: str, state: dict[str, Any]) -> str:
    """The page of the same trials in the same order, for a server without saved views."""
    facets = {"searchFilter": state["searchFilter"], "orderByKey": state["orderByKey"]}
    facets |= {"orderByAsc": json.dumps(state["orderByAsc"]), "startTime": "ALL", "lifecycleFilter": "Active"}
    query = urlencode({"workflowType": "machine_learning", **facets}, quote_via=quote)
    return f"/experiments/{experiment_id}/runs?{query}"


def view_url(tracking_uri: str, outbox: Outbox, *, charts: bool = False, port: int = LOCAL_PORT) -> str | None:
    """Link to the ranked trials of a study on MLflow's page; None before the view was delivered.

    Args:
        tracking_uri: of the server; for a database, the address of ``mlflow ui`` takes its place.
        outbox: of the study.
        charts: show the charts instead of the table.
        port: of ``mlflow ui``.
    """
    page = outbox.load_state().page
    if page is None:
        return None
    server = f"http://127.0.0.1:{port}"
    if tracking_uri.startswith(("http://", "https://")):
        server = redact_url(tracking_uri).rstrip("/")
    return f"{server}/#{page}{'&compareRunsMode=CHART' if charts else ''}"
