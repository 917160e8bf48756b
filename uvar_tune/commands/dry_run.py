"""`--dry-run`: what a study would do and ask for, without doing it."""

from __future__ import annotations

import logging
import math
import os

from uvar_tune.analysis.results import StudyResults
from uvar_tune.commands.checks import SEARCH, check_folder, check_place, check_study, phases_of
from uvar_tune.commands.dry_run_phases import ENDED, foretold, timed
from uvar_tune.config.schema import Config
from uvar_tune.config.space import baseline_point, searched_entries, searched_inference_entries
from uvar_tune.errors import ConfigError
from uvar_tune.io.uri import redact_url
from uvar_tune.study_dir import StudyDirectory, resolve_root

logger = logging.getLogger(__name__)


def plan(config: Config, *, phase: str | None = None) -> int:
    """Say trials, space, where things will lie, trials at once on the cluster's real resources, expected hours and bytes.

    Raises:
        ConfigError: the configuration cannot run, here or at all.
    """
    steps = phases_of(phase)
    check_study(config, steps)
    files = StudyDirectory(resolve_root(config.run.root), config.study.name)
    check_folder(config)
    check_place(config, files)
    results = _results(config, files)
    others = foretold(config, files, steps, results)
    logger.info(f"study {files.name!r} below {files.root}{' (exists, would resume)' if files.config.exists() else ''}")
    total = _total(config, steps)
    if total:
        _log_search(config, total)
    at_once = _at_once(config)
    if total:
        logger.info(_expected(config, total, results, at_once))
    for line in others:
        logger.info(line)
    logger.info(f"MLflow: {redact_url(files.tracking_uri())}")
    return 0


def _total(config: Config, steps: tuple[str, ...]) -> int:
    """How many trials the search has after these phases; 0 where none of them searches."""
    study = config.study
    if {SEARCH, "refine"} & set(steps):
        return study.trials
    return min(study.trials, study.startup_trials + 1) if "explore" in steps else 0


def _log_search(config: Config, total: int) -> None:
    t = config.training
    logger.info(
        f"{total} trials of {t.images:,} images ({t.images // t.batch_size:,} steps of {t.batch_size}); "
        f"objective {config.study.metric} at {config.evaluation.samples:,} samples, sampler {config.study.sampler}"
    )
    for name, entry in searched_entries(config).items():
        held = (
            ", ".join(map(str, entry.choices))
            if entry.choices
            else f"{entry.low:g} … {entry.high:g}{' (log)' * entry.log}"
        )
        logger.info(f"  {name}: {held}  [{entry.role}]")
    if config.inference.search == "per_checkpoint":
        scales = ", ".join(f"{scale:g}" for scale in config.inference.search_cfg_scales)
        beside = dict.fromkeys((*config.inference.search_axes, *searched_inference_entries(config)))
        others = ", ".join(f"inference.{name}" for name in beside if name != "cfg_scale")
        logger.info(f"  inference.cfg_scale: each checkpoint scored at {scales}" + f"; with it {others}" * bool(others))
    for rung in config.study.rungs:
        logger.info(
            f"  rung at {rung:,} images: {config.study.pruning_metric} of {config.study.rung_samples:,} samples, "
            f"{config.study.pruner}"
        )


def _at_once(config: Config) -> int:
    """How many trials would run at once, said: on the cluster at RAY_ADDRESS, else on this machine by a Ray of its own.

    Raises:
        ConfigError: none would, and nothing can be waited for.
    """
    from uvar_tune.ray_backend.autoscaler import autoscaled
    from uvar_tune.ray_backend.cluster import asked, cluster, describe, fitting, node_resources, this_machine

    run, grows = config.run, False
    if os.environ.get("RAY_ADDRESS"):
        with cluster():
            fits, has, grows = fitting(config, node_resources()), f"the cluster has {describe()}", autoscaled()
    else:
        here = this_machine()
        fits, has = fitting(config, here), f"this machine has {here[0]['CPU']:g} CPUs, {here[0]['GPU']:g} GPUs"
    if fits < 1 and not grows:
        raise ConfigError(f"{asked(config)}; {has}", where="run.workers")
    at_once = run.max_concurrent if grows and run.max_concurrent else min(fits, run.max_concurrent or fits)
    waits = (
        f"; its autoscaler would be asked for more, {run.wait_resources_sec:g} s at most for the first trial" * grows
    )
    logger.info(f"trials at once: {at_once}; {asked(config)}; {has}{waits}")
    return max(1, at_once)


def _expected(config: Config, total: int, results: StudyResults | None, at_once: int) -> str:
    """Hours and bytes of what is left, from the trials of this study that have finished; before that the bytes of the
    baseline's checkpoints, and of the hours that nobody knows them: they are the hardware's."""
    finished = timed(results)
    if not finished:
        count, each = _checkpoints(config), _checkpoint_bytes(config)
        kept = max(1, min(count, config.run.checkpoint_bytes // each))
        return (
            f"expected: {kept} checkpoints of {each / 2**20:,.1f} MiB a trial (run.checkpoint_bytes bounds them), "
            f"{total * kept * each / 2**30:,.2f} GiB in all; hours: unknown until a trial of this study has "
            "finished here (the baseline is the first), then --dry-run tells them"
        )
    seconds = sum(trial.seconds for trial in finished) / len(finished)
    used = sum(_bytes(trial.directory) for trial in finished) / len(finished)
    left = max(0, total - sum(trial.state in ENDED for trial in results.trials))
    hours = math.ceil(left / at_once) * seconds / 3600
    return (
        f"expected, from {len(finished)} finished trials: {seconds / 60:.1f} minutes and {used / 2**20:,.1f} MiB a trial, "
        f"{hours:.2f} hours and {left * used / 2**30:,.2f} GiB for the {left} that are left"
    )


def _checkpoints(config: Config) -> int:
    """How many checkpoints a trial writes: at its interval, its rungs and its end."""
    from uvar_tune.trial.trial import checkpoint_images

    images, interval = config.training.images, checkpoint_images(config)
    return images // interval + sum(1 for images in {*config.study.rungs, images} if images % interval)


def _checkpoint_bytes(config: Config) -> int:
    """Of one checkpoint of the baseline: weights and AdamW's two moments in float32, and averaged weights where there are any.

    The network is counted, not made. Its few embeddings of classes, whose number only the images tell, count for ten.
    """
    import torch

    from uvar_tune.trial.factory import new_var, open_tokenizer

    sizes = open_tokenizer(config.tokenizer.path, config) if config.tokenizer.path else config.tokenizer
    with torch.device("meta"):
        var = new_var(config.with_values(baseline_point(config)), sizes, num_classes=10, seed=0, empty=True)
    return 4 * sum(parameter.numel() for parameter in var.parameters()) * (4 if config.training.ema else 3)


def _results(config: Config, files: StudyDirectory) -> StudyResults | None:
    """What the study has found so far; None where it has not begun."""
    if not files.config.exists():
        return None
    from uvar_tune.search.load import load_results
    from uvar_tune.search.storage import require_existing_study

    return (
        load_results(config, files)
        if require_existing_study(files.storage_url(config), files.name, files.directory)
        else None
    )


def _bytes(directory) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
