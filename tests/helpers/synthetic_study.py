"""A study with a known answer, made up: the score is a bowl in log λ1, falls apart for large λ2, and is noisy."""

from __future__ import annotations

import dataclasses
import math
import random
from pathlib import Path

from uvar_tune.analysis.noise import variance_components
from uvar_tune.analysis.results import StudyResults, TrialResult
from uvar_tune.analysis.verdict import Arm, compare_with_baseline
from uvar_tune.search.objectives import pareto_front
from uvar_tune.search.pruning import rung_correlation
from uvar_tune.tracking.metrics_log import MetricsLog

SPACE = {
    "loss.lambda_1": {"role": "scientific", "type": "float", "low": 0.01, "high": 6.0, "log": True, "choices": None},
    "loss.lambda_2": {"role": "scientific", "type": "float", "low": 0.004, "high": 0.9, "log": True, "choices": None},
    "loss.reference": {
        "role": "scientific",
        "type": "categorical",
        "low": None,
        "high": None,
        "log": False,
        "choices": ["normal", "uniform", "dataset", "semantic"],
    },
    "inference.cfg_scale": {
        "role": "inference",
        "type": "float",
        "low": 0.0,
        "high": 4.0,
        "log": False,
        "choices": None,
    },
}
SCALES = (0.0, 0.5, 1.0, 2.0, 4.0)
CONFIG = {
    "study": {"name": "made-up", "question": "Do λ1 and λ2 lower the FID?"},
    "inference": {"search": "per_checkpoint", "search_cfg_scales": list(SCALES)},
    "run": {"storage": "postgresql://ann:s3cret@db/optuna"},
}
PROTOCOL = {"metric_version": "1", "samples": 1000, "reference": "ab" * 32, "feature_network": "digits", "divisor": ""}
ENDS = (("PRUNED", "diverged"), ("PRUNED", "out_of_memory"), ("FAIL", "crashed"), ("RUNNING", None))


def trial(root: Path, number: int, *, rng: random.Random, end=("COMPLETE", "complete")) -> TrialResult:
    """Trial 0 is the baseline."""
    lambda_1, lambda_2 = (
        math.exp(rng.uniform(math.log(low), math.log(high))) if number else 0.0
        for low, high in ((0.01, 6.0), (0.004, 0.9))
    )
    base = (
        5
        + (0.6 * math.log10(lambda_1 / 0.5) ** 2 if number else 0.9)
        + max(0.0, 2.5 * (lambda_2 - 0.1))
        + rng.gauss(0, 0.2)
    )
    profile = [
        {"cfg_scale": scale, "seeds": "selection", "fid": base + 0.4 * (scale - 1) ** 2, "kid": base / 1000}
        for scale in SCALES
    ]
    scores = {
        "fid": base + 0.05,
        "kid": base / 1000,
        "is": 7.5,
        "precision": 0.71,
        "recall": 0.62,
        "conditional_accuracy": 0.97,
        "nll_token": 3.2,
        "accuracy": 0.9,
        "code_usage": 1.0,
    }
    complete = end[0] == "COMPLETE"
    evaluated = [{"cfg_scale": 1.0, "seeds": "evaluation", "fid": scores["fid"], "kid": scores["kid"]}]
    params = {
        "loss.lambda_1": lambda_1,
        "loss.lambda_2": lambda_2,
        "inference.cfg_scale": 1.0,
        "loss.reference": rng.choice(SPACE["loss.reference"]["choices"]),
    }
    return TrialResult(
        number=number,
        kind="search" if number else "baseline",
        state=end[0],
        outcome=end[1],
        params=params,
        value=scores["fid"] if complete else None,
        scores=scores if complete else {},
        inference_points=profile + evaluated if complete else [],
        attempts=1,
        seconds=61.2 if complete else None,
        cpu_sec={"training": 42.0, "evaluation": 21.0} if complete else {},
        directory=root / "trials" / f"{number:05d}",
        seeds={"training": 7},
        provenance={"commit": "abc123"} if complete else {},
    )


def study(root: Path, count: int, **changes) -> StudyResults:
    """``count`` trials, some of them without a score; a record of the best and of the baseline."""
    rng = random.Random(0)
    trials = [
        trial(root, number, rng=rng, end=rng.choice(ENDS) if number and number % 9 == 0 else ("COMPLETE", "complete"))
        for number in range(count)
    ]
    fields = {
        "name": "made-up",
        "metric": "fid",
        "direction": "minimize",
        "trials": tuple(trials),
        "space": SPACE,
        "protocol": PROTOCOL,
        "seed": 0,
        "directory": root,
        "config": CONFIG,
    }
    results = StudyResults(**{**fields, **changes})
    for found in {results.best.number: results.best, 0: results.baseline}.values():
        recorder = MetricsLog(found.directory / "metrics.jsonl")
        for images in range(160, 3360, 160):
            recorder.metrics(images, {"loss/total": 5 - images / 2000, "loss/ce": 5 - images / 2000, "grad_norm": 0.4})
    return results


EFFECTS = {
    "label smoothing": 0.02,
    "BEST": -0.6,
    "SECOND": -0.15,
    "2nd alone": -0.35,
    "SE alone": 0.5,
}  # FID over the baseline's
CELLS = {"none": "baseline", "second": "2nd alone", "semantic": "SE alone", "both": "BEST"}


def whole_study(root: Path, count: int, **changes) -> StudyResults:
    """A study in which every phase has been run, with a second objective, a constraint and rungs: all that a page can hold."""
    rng = random.Random(1)
    plain = study(root, count, further_metrics={"ece_token": "minimize"}, **changes)
    trials = tuple(_measured(trial, rng) for trial in plain.trials)
    results = dataclasses.replace(plain, trials=trials)
    rungs = {trial.number: trial.rungs for trial in trials if trial.rungs}
    feasible = [trial for trial in results.ranked() if trial.feasible]
    front = pareto_front([list(trial.metric_values.values()) for trial in feasible], ["minimize", "minimize"])
    scores = [
        [5 + training + sampling + rng.gauss(0, 0.05) for sampling in (0.1, -0.1, 0.02)]
        for training in (0.3, -0.2, 0.1, -0.15)
    ]
    return dataclasses.replace(
        results,
        pareto=tuple(feasible[index].number for index in front),
        noise=variance_components(scores).as_dict(),
        rung_correlation=tuple(rung_correlation(rungs, {trial.number: trial.value for trial in results.ranked()})),
        compute_importances=lambda: {
            "PED-ANOVA": {"loss.lambda_1": 0.7, "loss.lambda_2": 0.25, "loss.reference": 0.05},
            "fANOVA": {"loss.lambda_1": 0.35, "loss.lambda_2": 0.65, "loss.reference": None},
        },
        idle_sec=3600.0,
        **confirmation(results, rng),
    )


def confirmation(results: StudyResults, rng: random.Random) -> dict:
    """Eight pairs of each arm around the planted `EFFECTS`, the two best trials among them, tested."""
    first, second = (
        f"trial {trial.number}" for trial in [trial for trial in results.ranked() if trial.kind == "search"][:2]
    )
    names = {"BEST": first, "SECOND": second}
    searched = {f"trial {trial.number}": trial.value for trial in results.trials}
    seeds = [rng.gauss(5.4, 0.4) for _ in range(8)]
    base = Arm("baseline", dict(enumerate(seeds)))
    arms = [
        Arm(
            names.get(arm, arm),
            {r: seed + effect + rng.gauss(0, 0.15) for r, seed in enumerate(seeds)},
            search_value=searched.get(names.get(arm)),
        )
        for arm, effect in EFFECTS.items()
    ]
    return {
        "verdicts": {one.arm: one.as_dict() for one in compare_with_baseline(base, arms, direction="minimize")},
        "untested": {"trial 3": "replicate 2: diverged"},
        "factorial": {cell: names.get(arm, arm) for cell, arm in CELLS.items()},
        "confirmed": {
            arm.name: {
                "values": dict(arm.scores),
                "mean": sum(arm.scores.values()) / 8,
                "points": {"inference.cfg_scale": 1.5, "inference.temperature": 0.95},
            }
            for arm in (base, *arms)
        },
    }


def _measured(trial: TrialResult, rng: random.Random) -> TrialResult:
    if trial.value is None:
        return dataclasses.replace(
            trial, rungs={640: 9.0 + rng.random()}, wall_sec={"start-up": 2.0, "work": 20.0, "earlier": 0.0}
        )
    ece = 0.02 + 0.02 * rng.random() + 0.004 * (6 - trial.value) ** 2
    shares = {"grad_share/second_order": 0.0003 * trial.params["loss.lambda_1"] / 6, "grad_share/semantic_entropy": 0.2}
    return dataclasses.replace(
        trial,
        metric_values={"fid": trial.value, "ece_token": ece},
        scores={**trial.scores, "ece_token": ece, **shares},
        violations={"nll_token max_above_baseline": rng.gauss(-0.05, 0.05) if trial.number else -0.1},
        rungs={640: trial.value + 2 + rng.gauss(0, 1.5), 1600: trial.value + 1 + rng.gauss(0, 0.2)},
        wall_sec={"start-up": 4.0, "work": 57.2, "earlier": 30.0 if trial.number % 10 == 5 else 0.0},
    )
