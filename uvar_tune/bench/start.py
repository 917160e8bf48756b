"""Time from a trial's start to its first training step: ours against plain nested trials with Ray's defaults.

Both train a small VAR on one CPU worker of a Ray cluster that is started for each run, several trials in sequence; runs
alternate. ``plain`` builds the same network and stops at its first step, ours are trials of a study whose shared assets
exist. The first trial of a run is listed apart from later ones, whose processes have been prestarted by Ray or the
study. Times are wall seconds, because processes and polls are waited for; the row contains the machine's load.
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

_TRIALS = 3
_SPACE = {
    "study": {"name": "start", "trials": _TRIALS},
    "data": {"name": "digits"},
    "tokenizer": {"vocab_size": 64, "channels": 16, "images": 640},
    "model": {"depth": 1, "width": 32, "heads": 2},
    "training": {"images": 96000, "warmup_images": 64},
    "inference": {"search_cfg_scales": [0, 2], "search_refinements": 0},
    "evaluation": {"extractor": "digits", "samples": 100},
    "run": {"max_concurrent": 1},
    "space": {"loss.lambda_1": {"role": "scientific", "type": "float", "low": 0.01, "high": 1, "baseline": 0}},
}
_PLAIN = """
import json, sys, time
import ray
from ray import tune
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback


def loop(config):
    from ray.train.torch import prepare_model

    from uvar_tune.config.schema import ModelConfig
    from uvar_tune.model import VAR
    config = ModelConfig(depth=1, width=32, heads=2)
    model = prepare_model(VAR(config, vocab_size=64, code_dim=16, scales=(1, 2, 3, 4), num_classes=10))
    ray.train.report({"reached": time.time()})
    time.sleep(15)


def trainable(config):
    TorchTrainer(loop, train_loop_config=config, scaling_config=ScalingConfig(num_workers=1),
                 run_config=RunConfig(callbacks=[TuneReportCallback()], storage_path=config["storage"])).fit()


class Starts(tune.Callback):
    started = {}

    def on_trial_start(self, iteration, trials, trial, **info):
        self.started[trial.trial_id] = time.time()


ray.init(include_dashboard=True, log_to_driver=False)
space = {"storage": sys.argv[1], "any": tune.uniform(0, 1)}
starts = Starts()
results = tune.Tuner(tune.with_resources(trainable, {"CPU": 0.5}), param_space=space,
                   tune_config=tune.TuneConfig(num_samples=int(sys.argv[2]), max_concurrent_trials=1),
                   run_config=tune.RunConfig(storage_path=sys.argv[1], verbose=0, callbacks=[starts])).fit()
print(json.dumps([result.metrics["reached"] - starts.started[result.metrics["trial_id"]] for result in results]))
"""


def run(*, small: bool = False, repeats: int = 3) -> list[dict]:
    """One row per side and position of the trial: ``start_sec`` (median), its ratio to plain's, and the parts of ours.

    Args:
        small: one run of each side.
        repeats: alternated runs of each side.
    """
    runs = {"plain": [], "ours": []}
    with tempfile.TemporaryDirectory() as folder:
        _study(Path(folder), "assets", 1)  # prepares tokenizer, tokens and feature network
        for turn in range(1 if small else repeats):
            runs["plain"].append([{"start_sec": seconds} for seconds in _plain(Path(folder) / f"plain-{turn}")])
            runs["ours"].append(_study(Path(folder), f"start-{turn}"))
    machine = {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "repeats": len(runs["plain"]),
    }
    rows = []
    for trial, part in (("first", slice(0, 1)), ("later", slice(1, None))):
        medians = {
            side: _medians([start for trials in starts for start in trials[part]]) for side, starts in runs.items()
        }
        rows += [
            {
                "trial": trial,
                "side": side,
                "to_plain": round(median["start_sec"] / medians["plain"]["start_sec"], 3),
                **{key: round(value, 2) for key, value in median.items()},
                **machine,
            }
            for side, median in medians.items()
        ]
    return rows


def _medians(starts: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(start[key] for start in starts) for key in starts[0]}


def _environment() -> dict[str, str]:
    variables = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}
    return {**variables, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}


def _study(folder: Path, name: str, trials: int = _TRIALS) -> list[dict[str, float]]:
    """Seconds to the first step and their parts of each trial of a study, from its storage."""
    path = folder / "space.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                **_SPACE,
                "study": {"name": name, "trials": trials},
                "run": {**_SPACE["run"], "root": str(folder / "runs")},
            }
        )
    )
    _output("-m", "uvar_tune.sweep", str(path))
    from uvar_tune.config.loading import read_config
    from uvar_tune.search.study import Search
    from uvar_tune.study_dir import StudyDirectory

    config = read_config(path)
    search = Search(config, StudyDirectory(folder / "runs", name).storage_url(config))
    attributes = [trial.user_attrs for trial in search.study.trials]
    return [
        {"start_sec": one["start_up_seconds"], **{f"{part}_sec": sec for part, sec in one["start_up_parts"].items()}}
        for one in attributes
    ]


def _plain(storage: Path) -> list[float]:
    script = storage.with_suffix(".py")
    script.write_text(_PLAIN)
    return json.loads(_output(str(script), str(storage), str(_TRIALS)).splitlines()[-1])


def _output(*arguments: str) -> str:
    """The standard output of a Python process.

    Raises:
        RuntimeError: the process failed; with the end of its standard error.
    """
    done = subprocess.run([sys.executable, *arguments], env=_environment(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with exit code {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout
