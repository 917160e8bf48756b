"""A study with a known answer, made up: the score is a bowl in log λ1, falls apart for large λ2, and is noisy."""

from __future__ import annotations

import math
import random
from pathlib import Path

from uvar_tune.study.results import StudyResults, TrialResult
from uvar_tune.tracking.record import Recorder

SPACE = {
    "objective.lambda_1": {"role": "scientific", "type": "float", "low": 0.01, "high": 6.0, "log": True, "choices": None},
    "objective.lambda_2": {"role": "scientific", "type": "float", "low": 0.004, "high": 0.9, "log": True, "choices": None},
    "objective.reference": {"role": "scientific", "type": "categorical", "low": None, "high": None, "log": False,
                            "choices": ["normal", "uniform", "dataset", "semantic"]},
    "inference.cfg_scale": {"role": "inference", "type": "float", "low": 0.0, "high": 4.0, "log": False, "choices": None},
}
SCALES = (0.0, 0.5, 1.0, 2.0, 4.0)
CONFIG = {"study": {"name": "made-up", "question": "Do λ1 and λ2 lower the FID?"},
          "inference": {"mode": "profile", "profile_cfg_scales": list(SCALES)},
          "run": {"storage": "postgresql://ann:s3cret@db/optuna"}}
PROTOCOL = {"metric_version": "1", "samples": 1000, "reference": "ab" * 32, "feature_network": "digits", "divisor": ""}
ENDS = (("PRUNED", "diverged"), ("PRUNED", "out_of_memory"), ("FAIL", "crashed"), ("RUNNING", None))


def trial(root: Path, number: int, *, rng: random.Random, end=("COMPLETE", "complete")) -> TrialResult:
    """Trial 0 is the baseline."""
    lambda_1, lambda_2 = (math.exp(rng.uniform(math.log(low), math.log(high))) if number else 0.0
                          for low, high in ((0.01, 6.0), (0.004, 0.9)))
    base = 5 + (0.6 * math.log10(lambda_1 / 0.5) ** 2 if number else 0.9) + max(0.0, 2.5 * (lambda_2 - 0.1)) + rng.gauss(0, 0.2)
    profile = [{"cfg_scale": scale, "seeds": "a", "fid": base + 0.4 * (scale - 1) ** 2, "kid": base / 1000} for scale in SCALES]
    scores = {"fid": base + 0.05, "kid": base / 1000, "is": 7.5, "precision": 0.71, "recall": 0.62, "conditional_accuracy": 0.97,
              "nll_token": 3.2, "accuracy": 0.9, "code_usage": 1.0}
    complete = end[0] == "COMPLETE"
    told = [{"cfg_scale": 1.0, "seeds": "b", "fid": scores["fid"], "kid": scores["kid"]}]
    params = {"objective.lambda_1": lambda_1, "objective.lambda_2": lambda_2, "inference.cfg_scale": 1.0,
              "objective.reference": rng.choice(SPACE["objective.reference"]["choices"])}
    return TrialResult(
        number=number, kind="search" if number else "baseline", state=end[0], outcome=end[1], params=params,
        value=scores["fid"] if complete else None, scores=scores if complete else {}, profile=profile + told if complete else [],
        attempts=1, seconds=61.2 if complete else None, cpu_sec={"training": 42.0, "evaluation": 21.0} if complete else {},
        directory=root / "trials" / f"{number:05d}", seeds={"training": 7}, made_by={"commit": "abc123"} if complete else {})


def study(root: Path, count: int, **changes) -> StudyResults:
    """``count`` trials, some of them without a score; a record of the best and of the baseline."""
    rng = random.Random(0)
    trials = [trial(root, number, rng=rng, end=rng.choice(ENDS) if number and number % 9 == 0 else ("COMPLETE", "complete"))
              for number in range(count)]
    fields = {"name": "made-up", "objective": "fid", "direction": "minimize", "trials": tuple(trials), "space": SPACE,
              "protocol": PROTOCOL, "seed": 0, "root": root, "config": CONFIG}
    results = StudyResults(**{**fields, **changes})
    for found in {results.best.number: results.best, 0: results.baseline}.values():
        recorder = Recorder(found.directory / "metrics.jsonl")
        for images in range(160, 3360, 160):
            recorder.metrics(images, {"loss/total": 5 - images / 2000, "loss/ce": 5 - images / 2000, "grad_norm": 0.4})
    return results
