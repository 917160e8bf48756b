"""Selection metrics of a study, constraints, and the Pareto front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from uvar_tune.config.schema import Config
from uvar_tune.errors import ConfigError, nearest
from uvar_tune.metrics import FURTHER, OBJECTIVE, metric, names_for

OBJECTIVES = names_for(OBJECTIVE)  # the first objective is one of them: they move with the CFG scale, which it chooses
FURTHER_METRICS = names_for(FURTHER)  # held-out NLL alone all but prefers λ = 0, so it is never the first one
COSTS = ("seconds", "gpu_peak_gib")  # of a trial, recorded with its score; a constraint may bound them


def check_objective(config: Config) -> None:
    """Every objective, stop metric and constraint names a score that is computed and that no searched weight enters.

    Raises:
        ConfigError: naming the choices.
    """
    study = config.study
    _check_name(config, study.metric, OBJECTIVES, "study.metric")
    for name in study.further_metrics:
        _check_name(config, name, (*OBJECTIVES, *FURTHER_METRICS), "study.further_metrics")
        if metric(name).direction == "target":
            raise ConfigError(
                f"{name!r} has a target, neither more nor less is better: bound it by study.constraints",
                where="study.further_metrics",
            )
    for name in study.constraints:
        _check_name(config, name, (*OBJECTIVES, *FURTHER_METRICS, *COSTS), "study.constraints")
    if study.rungs and study.pruning_metric not in OBJECTIVES:
        raise ConfigError(
            f"{study.pruning_metric!r} cannot stop trials: rungs score the samples of a short run (one of: "
            f"{', '.join(OBJECTIVES)})",
            where="study.rung_metric",
            nearest=study.metric,
        )


def _check_name(config: Config, name: str, known: Sequence[str], where: str) -> None:
    listed = ", ".join(known)
    if name.startswith("loss"):
        raise ConfigError(
            f"{name!r} contains the searched λ: a study never selects on it (one of: {listed})",
            where=where,
            nearest="fid",
        )
    if name not in known:
        raise ConfigError(f"{name!r} is not one of: {listed}", where=where, nearest=nearest(name, known))
    if name in OBJECTIVES and name not in config.evaluation.metrics:
        raise ConfigError(f"{name!r} is not among evaluation.metrics {list(config.evaluation.metrics)}", where=where)


def directions(config: Config) -> list[str]:
    """Minimize or maximize, for each objective of the study."""
    return [metric(name).direction for name in config.study.metrics]


def named_scores(config: Config) -> set[str]:
    """Every score that objectives and constraints name: what the evaluation of a trial has to compute."""
    return {*config.study.metrics, *config.study.constraints} - set(COSTS)


def violations(config: Config, values: Mapping[str, Any], baseline: Mapping[str, Any]) -> dict[str, float]:
    """The excess over each constraint in the unit of its score; at most 0 if it holds.

    Args:
        config: of the study.
        values: score or cost → value, of the trial.
        baseline: the same of the baseline.

    Raises:
        KeyError: a score that a constraint names is missing.
    """
    found = {}
    for name, bound in config.study.constraints.items():
        value = values[name]
        if bound.max is not None:
            found[f"{name} max"] = value - bound.max
        if bound.min is not None:
            found[f"{name} min"] = bound.min - value
        if bound.max_above_baseline is not None:
            found[f"{name} max_above_baseline"] = value - baseline[name] - bound.max_above_baseline
        if bound.max_below_baseline is not None:
            found[f"{name} max_below_baseline"] = baseline[name] - bound.max_below_baseline - value
    return found


def pareto_front(points: Sequence[Sequence[float]], directions: Sequence[str]) -> list[int]:
    """Indices of the points that no other one equals or beats in every objective and beats in one, in their order."""
    signs = [1.0 if direction == "minimize" else -1.0 for direction in directions]
    losses = [[sign * value for sign, value in zip(signs, point, strict=True)] for point in points]

    def beaten(loss: list[float]) -> bool:
        return any(other != loss and all(a <= b for a, b in zip(other, loss, strict=True)) for other in losses)

    return [index for index, loss in enumerate(losses) if not beaten(loss)]
