"""Searching the CFG scale by training against profiling it on each checkpoint, replayed on a table measured once.

The table (`uvar_tune.bench.profile_table`) holds, for each of many trained configurations, the FID at each CFG scale on
sampling seeds A and on seeds B. Two searches look for a value (on seeds B) as low as the 10th percentile of all its entries,
configurations × CFG scales, and the trainings they need are counted:

- ``joint``: TPE over the training parameters and the CFG scale; a training is scored once, at its own CFG scale.
- ``profiled``: TPE over the training parameters alone; a training is scored at every CFG scale on seeds A, and told at the
  best of them on seeds B.

A proposal becomes the nearest entry not taken before in this replay and is told with that entry's own parameters, so that
nothing is interpolated. Both begin with the same number of random trainings. Beside that target, which is the comparison,
a harder one is told: the 10th percentile of the configurations at their own best CFG scale.
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

from uvar_tune.bench.profile_table import TABLE, load_table, make_table
from uvar_tune.errors import ConfigError

STARTUP = 8  # trainings before TPE takes over, `study.startup_trials`
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
    """One row a target and search: median trainings with a 95 % bootstrap interval, and for ``profiled`` the ratio.

    Targets: ``table``, the 10th percentile of all entries on seeds B, is the comparison; ``best_cfg``, that of the
    configurations at the CFG scale that is best on seeds A, is told beside it.

    Args:
        small: 8 replays.
        repeats: replays of each search.
        table: file of the table; by default the one that ships.
        from_study, root: make the table first, of this finished study below this `run.root`, and write it to ``table``.
    """
    if from_study is not None:
        if table is None:
            raise ConfigError("a table is made and has no file to go to", where="--from-study", nearest="--table FILE")
        make_table(from_study, root, table)
    elif root is not None:
        raise ConfigError("is where a study lies, and none is named", where="--root", nearest="--from-study NAME")
    table = table or TABLE
    rows = load_table(table)
    repeats = 8 if small else repeats
    begun = time.process_time()
    joint, profiled = joint_entries(rows), profiled_entries(rows)
    goals = {
        "table": np.quantile([value for _, value in joint], 0.1),
        "best_cfg": np.quantile([value for _, value in profiled], 0.1),
    }
    needed = {
        name: np.array([trainings_needed(entries, list(goals.values()), seed) for seed in range(repeats)])
        for name, entries in (("joint", joint), ("profiled", profiled))
    }
    about = {
        "replays": repeats,
        "configurations": len(rows),
        "cfg_scales": len(rows[0]["scores"]),
        "optuna": optuna.__version__,
        "machine": platform.machine(),
        "load": round(os.getloadavg()[0], 2),
        "cpu_sec": round(time.process_time() - begun, 1),
    }
    return [
        {**row, **about}
        for i, (target, goal) in enumerate(goals.items())
        for row in _compare(
            target, float(goal), needed["joint"][:, i], needed["profiled"][:, i], len(rows[0]["scores"])
        )
    ]


def joint_entries(rows: list[dict]) -> list[tuple[dict[str, Any], float]]:
    """(parameters with the CFG scale, value on seeds B) of every configuration at every CFG scale."""
    return [({**row["params"], CFG: float(cfg)}, fid_b) for row in rows for cfg, _, fid_b in row["scores"]]


def profiled_entries(rows: list[dict]) -> list[tuple[dict[str, Any], float]]:
    """(parameters, value on seeds B at the CFG scale that is best on seeds A) of every configuration."""
    return [(row["params"], min(row["scores"], key=lambda score: score[1])[2]) for row in rows]


def trainings_needed(entries: list[tuple[dict[str, Any], float]], goals: list[float], seed: int) -> list[int]:
    """Trainings of one TPE replay until a value is at or below each of ``goals``; one more than there are where none is."""
    space = _space([params for params, _ in entries])
    places_ED = np.array([_place(params, space) for params, _ in entries])
    study, left_E = _study(seed), np.ones(len(entries), bool)
    found = [len(entries) + 1] * len(goals)
    for training in range(1, len(entries) + 1):
        proposal = study.ask(space)
        apart_ED = np.minimum(
            np.abs(places_ED - _place(proposal.params, space)), 1.0
        )  # two categories: 1 apart, whichever
        taken = int(np.argmin(np.where(left_E, (apart_ED**2).sum(1), np.inf)))
        left_E[taken] = False
        params, value = entries[taken]
        study.tell(proposal, state=optuna.trial.TrialState.FAIL)  # what was proposed is not what the table holds
        study.add_trial(optuna.trial.create_trial(params=params, distributions=space, value=value))
        found = [min(before, training) if value <= goal else before for before, goal in zip(found, goals, strict=True)]
        if max(found) <= training:
            break
    return found


def _compare(target: str, goal: float, joint_R: np.ndarray, profiled_R: np.ndarray, cfg_scales: int) -> list[dict]:
    """The rows of one target. The ratio is of medians, joint / profiled: how many times fewer trainings profiling takes."""
    picks = np.random.default_rng(_RESAMPLE_SEED)
    medians = {
        name: np.median(found_R[picks.integers(len(found_R), size=(_RESAMPLES, len(found_R)))], axis=1)
        for name, found_R in (("joint", joint_R), ("profiled", profiled_R))
    }
    rows = []
    for search, found_R, scores in (("joint", joint_R, 1), ("profiled", profiled_R, cfg_scales + 1)):
        row = {
            "target": target,
            "goal_fid": round(goal, 4),
            "search": search,
            "median_trainings": float(np.median(found_R)),
            **_interval(medians[search]),
            "median_scores": float(np.median(found_R)) * scores,
        }
        if search == "profiled":
            interval = _interval(medians["joint"] / medians["profiled"])
            row |= {
                "ratio": round(float(np.median(joint_R) / np.median(profiled_R)), 3),
                "ratio_low": interval["low"],
                "ratio_high": interval["high"],
            }
        rows.append(row)
    return rows


def _interval(resampled: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(resampled, (0.025, 0.975))
    return {"low": round(float(low), 3), "high": round(float(high), 3)}


def _study(seed: int) -> optuna.Study:
    """TPE with the settings of `sampler: tpe`, in memory."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.create_study(
            sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP, multivariate=True, group=True)
        )


def _space(params: list[dict[str, Any]]) -> dict[str, optuna.distributions.BaseDistribution]:
    """The ranges that the table spans: log where they reach over more than a decade, choices where they are words."""
    space: dict[str, optuna.distributions.BaseDistribution] = {}
    for name in params[0]:
        values = sorted({entry[name] for entry in params})
        if isinstance(values[0], str):
            space[name] = optuna.distributions.CategoricalDistribution(values)
        else:
            log = values[0] > 0 and values[-1] / values[0] > 10
            space[name] = optuna.distributions.FloatDistribution(float(values[0]), float(values[-1]), log=log)
    return space


def _place(params: dict[str, Any], space: dict[str, optuna.distributions.BaseDistribution]) -> list[float]:
    """Each parameter in [0, 1] over its range; the number of its choice where it is a word."""
    place = []
    for name, spread in space.items():
        if isinstance(spread, optuna.distributions.CategoricalDistribution):
            place.append(float(spread.choices.index(params[name])))
            continue
        scale = math.log if spread.log else float
        width = scale(spread.high) - scale(spread.low)
        place.append((scale(params[name]) - scale(spread.low)) / width if width else 0.0)
    return place
