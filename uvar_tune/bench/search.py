"""Searching the CFG scale as one more parameter against searching it on each checkpoint, replayed on a measured table.

The table (`uvar_tune.bench.search_table`) holds the FID of many trained configurations at each CFG scale, on selection
seeds (A) and on evaluation seeds (B). Two searches look for a value on seeds B as low as the 10th percentile of all
entries, configurations × CFG scales; the number of trainings they need is counted:

- ``joint``: TPE over the training parameters and the CFG scale. A training is scored once, at its own CFG scale.
- ``per_checkpoint``: TPE over the training parameters alone. A training is scored at every CFG scale on seeds A; its
  value is the score on seeds B at the best of them.

A proposal is replaced by the nearest entry not yet taken in this replay and is reported with that entry's parameters,
so nothing is interpolated. Both searches start with the same number of random trainings. A second, harder target is the
10th percentile of the configurations at their own best CFG scale.
"""

from __future__ import annotations

import math
import os
import platform
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from uvar_tune.bench.search_table import TABLE, load_table, make_table
from uvar_tune.errors import ConfigError

STARTUP = 8  # random trainings before TPE starts, `study.startup_trials`
CFG = "inference.cfg_scale"
_RESAMPLES = 2000
_RESAMPLE_SEED = 0


def run(
    *,
    small: bool = False,
    repeats: int = 200,
    table: Path | str | None = None,
    from_study: str | None = None,
    root: str | None = None,
) -> list[dict]:
    """One row per target and search: median trainings with a 95 % bootstrap interval, for ``per_checkpoint`` the ratio.

    The target ``table``, the 10th percentile of all entries on seeds B, is the comparison. ``best_cfg`` is that of the
    configurations at the CFG scale that is best on seeds A.

    Args:
        small: 8 replays.
        repeats: replays of each search.
        table: file of the table; the default is the one in the package.
        from_study: a finished study from which the table is made first and written to ``table``.
        root: `run.root` of that study.
    """
    if from_study is not None:
        if table is None:
            raise ConfigError(
                "a table is to be made, and no file is named for it", where="--from-study", nearest="--table FILE"
            )
        make_table(from_study, root, table)
    elif root is not None:
        raise ConfigError("is the directory of a study, and none is named", where="--root", nearest="--from-study NAME")
    table = table or TABLE
    rows = load_table(table)
    repeats = 8 if small else repeats
    start = time.process_time()
    joint, per_checkpoint = joint_entries(rows), per_checkpoint_entries(rows)
    goals = {
        "table": np.quantile([value for _, value in joint], 0.1),
        "best_cfg": np.quantile([value for _, value in per_checkpoint], 0.1),
    }
    needed = {
        name: np.array([trainings_needed(entries, list(goals.values()), seed) for seed in range(repeats)])
        for name, entries in (("joint", joint), ("per_checkpoint", per_checkpoint))
    }
    machine = {
        "replays": repeats,
        "configurations": len(rows),
        "cfg_scales": len(rows[0]["scores"]),
        "optuna": optuna.__version__,
        "machine": platform.machine(),
        "load": round(os.getloadavg()[0], 2),
        "cpu_sec": round(time.process_time() - start, 1),
    }
    return [
        {**row, **machine}
        for i, (target, goal) in enumerate(goals.items())
        for row in _compare(
            target, float(goal), needed["joint"][:, i], needed["per_checkpoint"][:, i], len(rows[0]["scores"])
        )
    ]


def joint_entries(rows: list[dict]) -> list[tuple[dict[str, Any], float]]:
    """(parameters including the CFG scale, value on seeds B) of every configuration at every CFG scale."""
    return [({**row["params"], CFG: float(cfg)}, fid_b) for row in rows for cfg, _, fid_b in row["scores"]]


def per_checkpoint_entries(rows: list[dict]) -> list[tuple[dict[str, Any], float]]:
    """(parameters, value on seeds B at the CFG scale that is best on seeds A) of every configuration."""
    return [(row["params"], min(row["scores"], key=lambda score: score[1])[2]) for row in rows]


def trainings_needed(entries: list[tuple[dict[str, Any], float]], goals: list[float], seed: int) -> list[int]:
    """Trainings of one TPE replay until a value reaches each goal; the number of entries + 1 if none does.

    Args:
        entries: (parameters, value).
        goals: values to reach.
        seed: of the sampler.
    """
    space = _space([params for params, _ in entries])
    coordinates_ED = np.array([_coordinates(params, space) for params, _ in entries])
    study, free_E = _study(seed), np.ones(len(entries), bool)
    needed = [len(entries) + 1] * len(goals)
    for training in range(1, len(entries) + 1):
        proposal = study.ask(space)
        # two different categories have distance 1
        distance_ED = np.minimum(np.abs(coordinates_ED - _coordinates(proposal.params, space)), 1.0)
        nearest = int(np.argmin(np.where(free_E, (distance_ED**2).sum(1), np.inf)))
        free_E[nearest] = False
        params, value = entries[nearest]
        study.tell(proposal, state=optuna.trial.TrialState.FAIL)  # the entry takes the place of the proposal
        study.add_trial(optuna.trial.create_trial(params=params, distributions=space, value=value))
        needed = [min(count, training) if value <= goal else count for count, goal in zip(needed, goals, strict=True)]
        if max(needed) <= training:
            break
    return needed


def _compare(
    target: str, goal: float, joint_R: np.ndarray, per_checkpoint_R: np.ndarray, cfg_scales: int
) -> list[dict]:
    """The rows of one target; the ratio of medians is joint / per_checkpoint."""
    rng = np.random.default_rng(_RESAMPLE_SEED)
    medians = {
        name: np.median(found_R[rng.integers(len(found_R), size=(_RESAMPLES, len(found_R)))], axis=1)
        for name, found_R in (("joint", joint_R), ("per_checkpoint", per_checkpoint_R))
    }
    rows = []
    for search, found_R, scores in (("joint", joint_R, 1), ("per_checkpoint", per_checkpoint_R, cfg_scales + 1)):
        row = {
            "target": target,
            "goal_fid": round(goal, 4),
            "search": search,
            "median_trainings": float(np.median(found_R)),
            **_interval(medians[search]),
            "median_scores": float(np.median(found_R)) * scores,
        }
        if search == "per_checkpoint":
            interval = _interval(medians["joint"] / medians["per_checkpoint"])
            row |= {
                "ratio": round(float(np.median(joint_R) / np.median(per_checkpoint_R)), 3),
                "ratio_low": interval["low"],
                "ratio_high": interval["high"],
            }
        rows.append(row)
    return rows


def _interval(resampled: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(resampled, (0.025, 0.975))
    return {"low": round(float(low), 3), "high": round(float(high), 3)}


def _study(seed: int) -> optuna.Study:
    """An in-memory study with the sampler of `sampler: tpe`."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.create_study(
            sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP, multivariate=True, group=True)
        )


def _space(params: list[dict[str, Any]]) -> dict[str, optuna.distributions.BaseDistribution]:
    """The ranges of the table: logarithmic if they span more than a decade, categorical for text."""
    space: dict[str, optuna.distributions.BaseDistribution] = {}
    for name in params[0]:
        values = sorted({entry[name] for entry in params})
        if isinstance(values[0], str):
            space[name] = optuna.distributions.CategoricalDistribution(values)
        else:
            log = values[0] > 0 and values[-1] / values[0] > 10
            space[name] = optuna.distributions.FloatDistribution(float(values[0]), float(values[-1]), log=log)
    return space


def _coordinates(params: dict[str, Any], space: dict[str, optuna.distributions.BaseDistribution]) -> list[float]:
    """Each parameter scaled to [0, 1] over its range; the index of the choice if it is categorical."""
    coordinates = []
    for name, distribution in space.items():
        if isinstance(distribution, optuna.distributions.CategoricalDistribution):
            coordinates.append(float(distribution.choices.index(params[name])))
            continue
        scale = math.log if distribution.log else float
        width = scale(distribution.high) - scale(distribution.low)
        coordinates.append((scale(params[name]) - scale(distribution.low)) / width if width else 0.0)
    return coordinates
