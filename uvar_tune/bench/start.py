"""From a trial's start to its first training step: ours against a plain nested Tune + Train trial with Ray's defaults.

Both train a small VAR on one CPU worker of a Ray that the bench starts for each run; runs alternate. ``plain`` builds the
same network and stops at its first step, ours is a real trial of a study whose shared assets exist. Wall seconds, because
what is waited for are processes and polls; the machine's load is in the row.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

_SPACE = {
    "study": {"name": "start", "trials": 1}, "data": {"name": "digits"},
    "tokenizer": {"vocab_size": 64, "channels": 16, "images": 640}, "model": {"depth": 1, "width": 32, "heads": 2},
    "training": {"images": 640, "warmup_images": 64}, "inference": {"profile_cfg_scales": [0, 2], "profile_refinements": 0},
    "evaluation": {"extractor": "digits", "samples": 100}, "run": {"max_concurrent": 1},
}
_PLAIN = '''
import json, sys, time
import ray
from ray import tune
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback


def loop(config):
    import torch
    from ray.train.torch import prepare_model

    from uvar_tune.model import VAR
    model = prepare_model(VAR(depth=1, width=32, heads=2, scales=(1, 2, 3, 4), vocab_size=64, code_dim=16, num_classes=10))
    ray.train.report({"start_sec": time.time() - config["started"]})


def trainable(config):
    TorchTrainer(loop, train_loop_config=config, scaling_config=ScalingConfig(num_workers=1),
                 run_config=RunConfig(callbacks=[TuneReportCallback()], storage_path=config["place"])).fit()


ray.init(include_dashboard=True, log_to_driver=False)
given = {"started": time.time(), "place": sys.argv[1]}
found = tune.Tuner(tune.with_resources(trainable, {"CPU": 0.5}), param_space=given,
                   run_config=tune.RunConfig(storage_path=sys.argv[1], verbose=0)).fit()
print(json.dumps({"start_sec": found[0].metrics["start_sec"]}))
'''


def run(*, small: bool = False, repeats: int = 3) -> list[dict]:
    """One row a side: ``start_sec`` (median) and its ratio to the plain trial.

    Args:
        small: one run of each side.
        repeats: alternated runs of each side.
    """
    times: dict[str, list[float]] = {"plain": [], "ours": []}
    with tempfile.TemporaryDirectory() as folder:
        _study(Path(folder), "warm")  # tokenizer, tokens and feature network, once
        for turn in range(1 if small else repeats):
            times["plain"].append(_plain(Path(folder) / f"plain-{turn}"))
            times["ours"].append(_study(Path(folder), f"start-{turn}"))
    medians = {side: statistics.median(values) for side, values in times.items()}
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2),
               "repeats": len(times["plain"])}
    return [{"side": side, "start_sec": round(medians[side], 2), "to_plain": round(medians[side] / medians["plain"], 3),
             **machine} for side in times]


def _environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}
    return {**kept, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}


def _study(folder: Path, name: str) -> float:
    """Seconds to the first step of the baseline of a study of one trial, from the trial's own record."""
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump({**_SPACE, "study": {**_SPACE["study"], "name": name},
                                    "run": {**_SPACE["run"], "root": str(folder / "runs")}}))
    _output("-m", "uvar_tune.sweep", str(path))
    from uvar_tune.config_file import read_config
    from uvar_tune.study.files import StudyFiles
    from uvar_tune.study.search import Search

    config = read_config(path)
    search = Search(config, StudyFiles(folder / "runs", name).storage_url(config))
    return search.study.trials[0].user_attrs["start_up_seconds"]


def _plain(storage: Path) -> float:
    script = storage.with_suffix(".py")
    script.write_text(_PLAIN)
    return json.loads(_output(str(script), str(storage)).splitlines()[-1])["start_sec"]


def _output(*arguments: str) -> str:
    """What a Python process writes to stdout.

    Raises:
        RuntimeError: it failed; with the end of what it wrote to stderr.
    """
    done = subprocess.run([sys.executable, *arguments], env=_environment(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with exit code {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout
