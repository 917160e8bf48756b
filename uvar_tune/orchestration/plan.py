"""`--dry-run`: what a study would do and ask for, without doing it."""

from __future__ import annotations

import os
from typing import Any

from uvar_tune.config import Config
from uvar_tune.errors import ConfigError
from uvar_tune.space import searched
from uvar_tune.study.files import StudyFiles, resolve_root
from uvar_tune.study.objectives import check_objective
from uvar_tune.study.results import StudyResults
from uvar_tune.tracking.uri import shown


def plan(config: Config, say) -> int:
    """Say trials, space, where things will lie, trials at once on the cluster's real resources, expected hours and bytes.

    Raises:
        ConfigError: the configuration cannot run, here or at all.
    """
    check_objective(config)
    files = StudyFiles(resolve_root(config.run.root), config.study.name)
    t = config.training
    say(f"study {files.name!r} below {files.root}{' (exists, would resume)' if files.config.exists() else ''}")
    say(f"{config.study.trials} trials of {t.images:,} images ({t.images // t.batch_size:,} steps of {t.batch_size}); "
        f"objective {config.study.objective} at {config.evaluation.samples:,} samples, sampler {config.study.sampler}")
    for name, entry in searched(config).items():
        held = ", ".join(map(str, entry.choices)) if entry.choices else f"{entry.low:g} … {entry.high:g}{' (log)' * entry.log}"
        say(f"  {name}: {held}  [{entry.role}]")
    if config.inference.mode == "profile":
        scales = ", ".join(f"{scale:g}" for scale in config.inference.profile_cfg_scales)
        say(f"  inference.cfg_scale: each checkpoint scored at {scales}")
    for rung in config.study.rungs:
        say(f"  rung at {rung:,} images: {config.study.rung_metric} of {config.study.rung_samples:,} samples, "
            f"{config.study.pruner}")
    at_once = _at_once(config)
    say(f"trials at once: {at_once}, {config.run.workers} workers each with {config.run.cpus_per_worker:g} CPUs and "
        f"{config.run.gpus_per_worker:g} GPUs")
    say(_expected(config, files, at_once))
    say(f"MLflow: {shown(files.tracking_uri())}")
    return 0


def _at_once(config: Config) -> int:
    """From the cluster at RAY_ADDRESS; without one from this machine, on which the study would start a Ray of its own."""
    if os.environ.get("RAY_ADDRESS"):
        from uvar_tune.orchestration.resources import capacity, cluster

        with cluster(lambda text: None):
            return capacity(config)
    import torch

    run = config.run
    here = {"CPUs": (os.cpu_count() or 1, run.workers * run.cpus_per_worker),
            "GPUs": (torch.cuda.device_count(), run.workers * run.gpus_per_worker)}
    fits = min(int(has // need) for has, need in here.values() if need > 0)
    if fits < 1:
        shown = ", ".join(f"{need:g} {what} of {has}" for what, (has, need) in here.items() if need > 0)
        raise ConfigError(f"one trial asks for {shown} that this machine has", where="run.workers")
    return min(fits, run.max_concurrent or fits)


def _expected(config: Config, files: StudyFiles, at_once: int) -> str:
    """Hours and bytes, from the trials of this study that have finished."""
    finished = _finished(files)
    if not finished:
        return "expected hours and bytes: known when a trial of this study has finished (the baseline is the first)"
    seconds = sum(trial.seconds for trial in finished) / len(finished)
    used = sum(_bytes(trial.directory) for trial in finished) / len(finished)
    left = max(0, config.study.trials - len(finished))
    return (f"expected, from {len(finished)} finished trials: {seconds / 60:.1f} minutes and {used / 2**20:.0f} MiB a trial, "
            f"{left * seconds / at_once / 3600:.2f} hours and {left * used / 2**30:.2f} GiB for the {left} that are left")


def _finished(files: StudyFiles) -> list[Any]:
    if not files.config.exists():
        return []
    from uvar_tune.study.load import load_results

    results: StudyResults = load_results(files.stored(), files)
    return [trial for trial in results.trials if trial.state == "COMPLETE" and trial.seconds]


def _bytes(directory) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
