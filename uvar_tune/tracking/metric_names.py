"""Names of metrics on MLflow's page, which shows a group of charts for each part before a slash.

The headline metrics keep their plain names. Values of single scales become one metric ``scales/NAME`` whose step is the
scale, from 1, so that its chart is a curve over the scales.
"""

from __future__ import annotations

import re

from uvar_tune.metrics import HEADLINE

_SCALE = re.compile(r"(.+)/scale_(\d+)")
_GROUPS = {
    "learning_rate": "optimizer",
    "grad_norm": "optimizer",
    "images_per_sec": "speed",
    "epoch_sec": "speed",
    "cpu_sec": "speed",
    "memory_gib": "speed",
    "batch_size": "speed",
}


def metric_key(name: str) -> str:
    """The name of a metric in MLflow; a value of a single scale has the name of its curve."""
    if match := _SCALE.fullmatch(name):
        return f"scales/{match.group(1)}"
    if name.startswith("grad_share/"):
        return f"loss/{name}"
    if "/" in name or name in HEADLINE:
        return name
    return f"{_GROUPS.get(name, 'other')}/{name}"


def scale_of(name: str) -> int | None:
    """The scale of a value of a single scale, from 1; None for any other metric."""
    match = _SCALE.fullmatch(name)
    return int(match.group(2)) if match else None
