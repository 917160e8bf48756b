"""How a study looks on MLflow's page: names of runs, its description, the saved view of its trials, and links."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Iterable
from typing import Any

from uvar_tune.io.uri import redact_url
from uvar_tune.tracking.outbox import Outbox

SEARCH = "search"  # the phase of the trials of the search
_LOCAL_UI = "http://127.0.0.1:5000"  # where `mlflow ui` listens
_SYMBOLS = {"loss.lambda_1": "λ1", "loss.lambda_2": "λ2"}
_MAX_VALUES = 5  # in the name of a run
_DESCRIPTION = "mlflow.note.content"


def phase_of(key: int | str) -> str:
    """The phase of a trial (``7``) or replicate (``noise/0``)."""
    return key.partition("/")[0] if isinstance(key, str) else SEARCH


def run_name(key: int | str, kind: str, values: dict[str, Any]) -> str:
    """Name of a trial's run, such as ``t007 λ1 0.03 λ2 0.05 normal``, ``t000 baseline`` or ``noise r003 baseline``.

    Args:
        key: trial number, or phase and number of a replicate.
        kind: ``search`` or ``baseline``; of a replicate, its arm.
        values: searched values by dotted name.
    """
    if isinstance(key, str):
        phase, _, number = key.partition("/")
        return f"{phase} r{int(number):03d} {kind}" if number.isdigit() else key
    if kind == "baseline":
        return f"t{key:03d} baseline"
    names = [*_SYMBOLS, *(name for name in values if name not in _SYMBOLS and not name.startswith("inference."))]
    words = [_word(name, values[name]) for name in names if name in values]
    return " ".join([f"t{key:03d}", *words[:_MAX_VALUES], *["…"] * (len(words) > _MAX_VALUES)])


def _word(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return f"{_SYMBOLS.get(name, name.rpartition('.')[2])} {text}"


def description(study: str, question: str, state: str, commands: Iterable[str]) -> dict[str, str]:
    """The tag that MLflow displays as the description of a run (Markdown).

    Args:
        study: name of the study.
        question: `study.question`.
        state: what has been reached, in a sentence or two.
        commands: commands to continue with.
    """
    lines = [f"**Question:** {question or 'none is given'}", f"**State:** {state}", "**Commands:**"]
    code = "\n".join(f"    {command}" for command in commands)
    return {_DESCRIPTION: "\n\n".join([f"### Study {study}", *lines, code])}


def view_state(search_filter: str, metric: str, direction: str, columns: list[str]) -> dict[str, Any]:
    """The state of a saved view of MLflow's run table.

    Args:
        search_filter: MLflow's search expression.
        metric: by which runs are ordered.
        direction: minimize or maximize.
        columns: such as ``metrics.`fid```, in order.
    """
    return {
        "searchFilter": search_filter,
        "orderByKey": f"metrics.`{metric}`",
        "orderByAsc": direction == "minimize",
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
        "columnOrder": [],
        "columnWidths": {},
        "runsHiddenMode": "FIRST_10_RUNS",
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": False,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }


def view_tag(name: str, key: str, state: dict[str, Any], time_ms: int) -> tuple[str, str]:
    """The experiment tag (key, value) that stores a saved view."""
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    view = {"name": name, "createdAt": time_ms, "updatedAt": time_ms, "state": f"deflate;{packed}"}
    return f"mlflow.sharedViewState.{key}", json.dumps(view)


def view_key(study: str, fingerprint: str) -> str:
    """Key of a study's saved view among those of its experiment."""
    return hashlib.sha256(f"{fingerprint}/{study}".encode()).hexdigest()[:16]


def view_url(tracking_uri: str, outbox: Outbox, study: str) -> str | None:
    """Link to the ranked trials of a study on MLflow's page; None before anything was delivered.

    Args:
        tracking_uri: of the server; for a database, the address of ``mlflow ui`` takes its place.
        outbox: of the study.
        study: name of the study.
    """
    state = outbox.load_state()
    if state.experiment_id is None or state.fingerprint is None:
        return None
    server = redact_url(tracking_uri).rstrip("/") if tracking_uri.startswith(("http://", "https://")) else _LOCAL_UI
    key = view_key(study, state.fingerprint)
    page = f"#/experiments/{state.experiment_id}/runs"
    return f"{server}/{page}?workflowType=machine_learning&viewStateShareKey={key}"
