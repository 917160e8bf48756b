"""What a trial's directory holds for MLflow.

A record's values go under their own names, step = images seen. A score on sampling seeds A is a point of the profile:
``profile/fid`` with step = 1000 · CFG scale; the one told on seeds B is ``profile_b/fid``. Each metric carries the time at
which it was recorded: a server drops a row that it has (same key, step, value and time), so that a replay doubles nothing.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from uvar_tune.tracking.metrics_log import AXES, read_records

_SETTLED_SEC = 2.0  # a picture younger than this may still be being written
InferencePointSearch = list[tuple[str, float, int, int]]  # key, value, time (ms since 1970), step


def milliseconds(seconds: float) -> int:
    return int(seconds * 1000)


def new_points(directory: Path, offset: int, scored: list[list]) -> tuple[InferencePointSearch, int]:
    """(the metrics in the record behind byte ``offset``, the offset behind them).

    Args:
        scored: the scores met so far; gains those met here, as a resumed attempt may score a checkpoint again.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: a line is none of ours.
    """
    records, end = read_records(directory / "metrics.jsonl", offset)
    return [point for record in records for point in _points(record, scored)], end


def _points(record: dict[str, Any], scored: list[list]) -> InferencePointSearch:
    at = milliseconds(record["time"])
    if record["kind"] == "metrics":
        return [(key, value, at, int(record["images"])) for key, value in record["values"].items()]
    if record["kind"] != "score":
        return []
    point = [record["images"], record["cfg_scale"], record["seeds"], *(record[name] for name in AXES if name in record)]
    if point in scored:
        return []
    scored.append(point)
    folder, step = "profile" if record["seeds"] == "selection" else "profile_b", round(1000 * record["cfg_scale"])
    names = sorted(record.keys() - {"time", "attempt", "kind", "images", "cfg_scale", "seeds"})
    return [(f"{folder}/{name}", float(record[name]), at, step) for name in names]


def missing_points(directory: Path | None, values: dict[str, float], otherwise: float) -> InferencePointSearch:
    """The values that the record does not hold at its last step, under that step and its time (``otherwise``: 0, this time)."""
    records = read_records(directory / "metrics.jsonl")[0] if directory and values else []
    metrics = [record for record in records if record["kind"] == "metrics"]
    at, last = (metrics[-1]["time"], metrics[-1]["images"]) if metrics else (otherwise, 0)
    held = {key for record in metrics if record["images"] == last for key in record["values"]}
    return [(key, float(value), milliseconds(at), int(last)) for key, value in values.items() if key not in held]


def new_pictures(folder: Path, sent: dict[str, list[int]], *, settled: bool) -> list[tuple[Path, list[int]]]:
    """(PNG file, its size and time) of those that are new or have changed; ``settled``: nobody writes them any more."""
    found = []
    for path in sorted(folder.glob("*.png")):
        stat = path.stat()
        mark = [stat.st_size, stat.st_mtime_ns]
        if sent.get(path.name) != mark and (settled or time.time() - stat.st_mtime > _SETTLED_SEC):
            found.append((path, mark))
    return found
