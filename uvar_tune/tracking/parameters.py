"""Parameters and tags of runs, from a configuration and an origin: the dotted names that users search the runs by."""

from __future__ import annotations

import json
from typing import Any

from uvar_tune.io.uri import redact_url


def study_parameters(config) -> dict[str, Any]:
    """{dotted name: value} of every setting of a `config.Config` that is set; a URL without its user and password."""
    tree = config.tree(exclude=("space", "final", "verdict", "provenance"))
    return {
        f"{section}.{key}": redact_url(value) if isinstance(value, str) and "://" in value else value
        for section, keys in tree.items()
        for key, value in keys.items()
        if value is not None
    }


def run_parameters(config, values: dict[str, Any]) -> dict[str, Any]:
    """What one trial runs with: the settings that decide its numbers (`evaluation.samples` among them), and ``values``.

    What is profiled is left out: the trial decides it at its end, and a parameter cannot change.
    """
    fixed = {key: value for key, value in study_parameters(config).items() if not key.startswith(("run.", "study."))}
    known = {**fixed, **{name: config.get(name) for name in config.space}, **values}
    return {key: value for key, value in known.items() if key not in profiled(config)}


def profiled(config) -> set[str]:
    """The dotted names whose values each trial decides by scoring its checkpoint at several."""
    if config.inference.search != "per_checkpoint":
        return set()
    return {"inference.cfg_scale"} | {name for name, entry in config.space.items() if entry.role == "inference"}


def that_ran(ran: dict[str, float]) -> dict[str, float]:
    """Parameters `ran.loss.lambda_1`, …: the λ behind the shares of the gradient that were asked for, which stand under the
    plain names and cannot change any more when these are known."""
    return {f"ran.{name}": value for name, value in ran.items()}


def scored_under(protocol: dict[str, Any], seeds: dict[str, int]) -> dict[str, Any]:
    """Parameters `protocol.*`, which must be equal for two numbers to be compared, and `origin.*`, the seeds behind them."""
    return {
        **{f"protocol.{name}": value for name, value in protocol.items() if value != ""},
        **{f"origin.seed.{purpose}": seed for purpose, seed in seeds.items()},
    }


def origin_tags(origin: dict[str, Any]) -> dict[str, str]:
    """Tags of `provenance.origin`: commit, source, versions, machine."""
    return {
        f"uvar.{key}": json.dumps(value) if isinstance(value, dict) else str(value) for key, value in origin.items()
    }
