"""Parameters and tags of MLflow runs: the dotted names by which users search for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from uvar_tune.config.schema import Config
from uvar_tune.io.uri import redact_url
from uvar_tune.tracking.metric_names import metric_key
from uvar_tune.tracking.presentation import study_description

_FIRST, _CFG = ("loss.lambda_1", "loss.lambda_2", "loss.reference"), "inference.cfg_scale"
_DIGEST_LENGTH = 16  # MLflow takes 36


def study_parameters(config: Config) -> dict[str, Any]:
    """Every setting that has a value, by dotted name; URLs without user and password."""
    tree = config.tree(exclude=("space", "final", "verdict", "provenance"))
    return {
        f"{section}.{key}": redact_url(value) if isinstance(value, str) and "://" in value else value
        for section, settings in tree.items()
        for key, value in settings.items()
        if value is not None
    }


def run_parameters(config: Config, values: dict[str, Any]) -> dict[str, Any]:
    """The parameters of one trial: every setting that affects its scores, and its own values.

    `selected_parameters` are left out: the trial decides them at its end, and an MLflow parameter cannot change.

    Args:
        config: configuration of the study.
        values: searched values of the trial, by dotted name.
    """
    settings = {key: value for key, value in study_parameters(config).items() if not key.startswith(("run.", "study."))}
    parameters = {**settings, **{name: config.get(name) for name in config.space}, **values}
    return {key: value for key, value in parameters.items() if key not in selected_parameters(config)}


def selected_parameters(config: Config) -> set[str]:
    """Dotted names of the inference parameters that each trial selects by scoring its checkpoint at several values."""
    if config.inference.search != "per_checkpoint":
        return set()
    return {"inference.cfg_scale"} | {name for name, entry in config.space.items() if entry.role == "inference"}


def effective_parameters(values: dict[str, float]) -> dict[str, float]:
    """Parameters ``effective.loss.lambda_1``, …: the λ that realise the searched gradient shares.

    The shares have the plain names, and an MLflow parameter cannot change.
    """
    return {f"effective.{name}": value for name, value in values.items()}


def score_parameters(protocol: dict[str, Any], seeds: dict[str, int]) -> dict[str, Any]:
    """Parameters ``protocol.*``, which are equal for comparable scores, and ``seed.*``."""
    return {
        **{f"protocol.{name}": value for name, value in protocol.items() if value != ""},
        **{f"seed.{purpose}": seed for purpose, seed in seeds.items()},
    }


def provenance_tags(provenance: dict[str, Any]) -> dict[str, str]:
    """Tags of `provenance.origin` (commit, source, versions, machine), and those that MLflow displays as the source."""
    tags = {
        f"uvar.{key}": json.dumps(value) if isinstance(value, dict) else str(value) for key, value in provenance.items()
    }
    return {**tags, **source_tags(provenance)}


def source_tags(provenance: dict[str, Any]) -> dict[str, str]:
    """The tags that MLflow displays as the source of a run."""
    tags = {"mlflow.source.name": "uvar-tune", "mlflow.source.type": "LOCAL"}
    if commit := provenance.get("commit"):
        tags["mlflow.source.git.commit"] = commit.removesuffix("-dirty")
    return tags


def datasets(config: Config, sha256: dict[str, str], images: dict[str, int]) -> list[dict[str, Any]]:
    """Arguments of `RunLogger.log_datasets`.

    Args:
        config: of the study.
        sha256: split → hash of its images.
        images: split → how many.
    """
    data = config.data
    name = Path(data.path).name if data.path else data.name
    contexts = {"train": "training", "validation": "validation"}
    return [
        {
            "name": f"{name} ({contexts.get(split, split)})",
            "digest": digest[:_DIGEST_LENGTH],
            "context": contexts.get(split, split),
            "source": redact_url(data.path) if data.path else f"built-in:{data.name}",
            "images": images.get(split),
            "profile": {"image_size": data.image_size, "sha256": digest},
        }
        for split, digest in sha256.items()
    ]


def study_tags(study: str, question: str, state: str = "not finished", best: int | None = None) -> dict[str, str]:
    """Tags of a study's run: its kind, and the description that MLflow displays; see `study_description`."""
    return {"uvar.kind": "study", **study_description(study, question, state, best)}


def saved_view(config: Config, direction: str) -> dict[str, Any]:
    """Arguments of `RunLogger.save_view` for a study; ``direction`` is that of its metric."""
    name, metric = f"{config.study.name}: ranked", config.study.metric
    columns, axes = view_columns(config), view_axes(config)
    return {"name": name, "metric": metric, "direction": direction, "columns": columns, "axes": axes}


def view_columns(config: Config) -> list[str]:
    """Columns of a study's saved view: rank, metrics, difference from the baseline, verdict, kind, parameters."""
    metrics = dict.fromkeys(metric_key(name) for name in config.study.metrics)
    return [
        "tags.`uvar.rank`",
        *(f"metrics.`{name}`" for name in metrics),
        *(f"tags.`uvar.{name}`" for name in ("difference", "verdict", "kind")),
        *(f"params.`{name}`" for name in view_axes(config)),
    ]


def view_axes(config: Config) -> list[str]:
    """Parameters that the charts of the saved view show: the searched ones, the CFG scale last."""
    names = [name for name, entry in config.space.items() if entry.role != "fixed" and name != _CFG]
    first = [name for name in _FIRST if name in names]
    return [*first, *(name for name in names if name not in first), _CFG]
