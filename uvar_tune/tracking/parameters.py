"""Parameters and tags of MLflow runs: the dotted names by which users search for them."""

from __future__ import annotations

import json
from typing import Any

from uvar_tune.config.schema import Config
from uvar_tune.io.uri import redact_url
from uvar_tune.tracking.presentation import description


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
    if commit := provenance.get("commit"):
        tags["mlflow.source.git.commit"] = commit.removesuffix("-dirty")
    return {**tags, "mlflow.source.name": "uvar-tune", "mlflow.source.type": "LOCAL"}


def study_tags(study: str, question: str, state: str = "not finished") -> dict[str, str]:
    """Tags of a study's run: its kind, and the description that MLflow displays.

    Args:
        study: name of the study.
        question: `study.question`.
        state: what has been reached, in a sentence or two.
    """
    commands = [f"uvar-tune {command}" for command in (f"show {study}", f"report --study {study}")]
    commands.append(f"uvar-tune export --study {study} --top 3 --unconfirmed")
    return {"uvar.kind": "study", **description(study, question, state, commands)}


def view_columns(config: Config) -> list[str]:
    """Columns of a study's saved view: its metrics, verdict and kind, then the searched parameters."""
    names = [name for name, entry in config.space.items() if entry.role != "fixed"]
    parameters = [*names, *(name for name in ("inference.cfg_scale",) if name not in names)]
    metrics = [f"metrics.`{name}`" for name in config.study.metrics]
    return [*metrics, "tags.`uvar.verdict`", "tags.`uvar.kind`", *(f"params.`{name}`" for name in parameters)]
