"""What MLflow gets of a trial's files: points of its metrics log, the table of its scores over CFG, its images."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

from uvar_tune.tracking.metric_names import metric_key, scale_of
from uvar_tune.tracking.metrics_log import AXES, read_records

_MIN_IMAGE_AGE_SEC = 2.0  # a younger image may still be being written


class MetricPoint(NamedTuple):
    """One value of a metric; ``time_ms`` since the epoch."""

    key: str
    value: float
    time_ms: int
    step: int


def milliseconds(seconds: float) -> int:
    """Whole milliseconds, MLflow's unit of time."""
    return int(seconds * 1000)


def new_points(directory: Path, offset: int) -> tuple[list[MetricPoint], int]:
    """The metrics of a trial's log from a byte offset on, and the offset behind them.

    Values of single scales are left to `missing_points`. Values that are not finite stay in the log: MLflow's page does
    not load with NaN, its filters take NaN for 0, and SQL stores replace infinity.

    Args:
        directory: the trial directory.
        offset: where to start, in bytes.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: a line is not one of a metrics log.
    """
    records, end = read_records(directory / "metrics.jsonl", offset)
    return [
        MetricPoint(metric_key(key), value, milliseconds(record["time"]), int(record["images"]))
        for record in records
        if record["kind"] == "metrics"
        for key, value in record["values"].items()
        if scale_of(key) is None and math.isfinite(value)
    ], end


def missing_points(directory: Path | None, values: dict[str, float], default_time: float) -> list[MetricPoint]:
    """The metrics missing from the last logged step, stamped with that step and its time; curves over the scales.

    Args:
        directory: the trial directory, if known.
        values: the final metrics.
        default_time: time (s since the epoch) if the log is empty; the step is then 0.
    """
    records = read_records(directory / "metrics.jsonl")[0] if directory and values else []
    metrics = [record for record in records if record["kind"] == "metrics"]
    last_time, step = (metrics[-1]["time"], metrics[-1]["images"]) if metrics else (default_time, 0)
    logged = {key: value for record in metrics if record["images"] == step for key, value in record["values"].items()}
    scales = {key: value for key, value in {**logged, **values}.items() if scale_of(key) is not None}
    missing = {key: value for key, value in values.items() if key not in logged}
    return [
        MetricPoint(metric_key(key), float(value), milliseconds(last_time), scale_of(key) or int(step))
        for key, value in {**missing, **scales}.items()
        if math.isfinite(value)
    ]


def profile_table(directory: Path) -> dict[str, Any] | None:
    """The scores of a trial at each inference point, as columns and data; None if there are none.

    Args:
        directory: the trial directory.
    """
    rows: dict[str, dict[str, Any]] = {}
    for record in read_records(directory / "metrics.jsonl")[0]:
        if record["kind"] == "score":  # a resumed attempt may score a checkpoint again: the first one counts
            identity = [record["images"], record["cfg_scale"], record["seeds"], *(record.get(axis) for axis in AXES)]
            rows.setdefault(json.dumps(identity), record)
    if not rows:
        return None
    first = [name for name in ("cfg_scale", *AXES, "seeds") if any(name in row for row in rows.values())]
    others = sorted({name for row in rows.values() for name in row} - {"time", "attempt", "kind", "images", *first})
    columns = [*first, *others]
    ordered = sorted(rows.values(), key=lambda row: (row["seeds"] != "selection", row["cfg_scale"]))
    return {"columns": columns, "data": [[row.get(name) for name in columns] for row in ordered]}


def new_images(folder: Path, queued: dict[str, list[int]], *, final: bool) -> list[tuple[Path, list[int]]]:
    """The PNG files of a folder that are new or have changed, each with its [size, mtime_ns].

    Args:
        folder: the sample folder.
        queued: file name → [size, mtime_ns] of those queued before.
        final: nobody writes them any more; else the youngest ones are left for later.
    """
    images = []
    for path in sorted(folder.glob("*.png")):
        stat = path.stat()
        stamp = [stat.st_size, stat.st_mtime_ns]
        if queued.get(path.name) != stamp and (final or time.time() - stat.st_mtime > _MIN_IMAGE_AGE_SEC):
            images.append((path, stamp))
    return images
