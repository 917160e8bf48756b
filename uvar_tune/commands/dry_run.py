"""`--dry-run`: checks a study and logs what it would run and need, without creating anything."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path

from uvar_tune.analysis.results import StudyResults, TrialResult
from uvar_tune.commands.checks import (
    SEARCH,
    check_first_phase,
    check_images,
    check_study,
    check_study_directory,
    check_warm_start,
    phases_of,
)
from uvar_tune.config.schema import Config
from uvar_tune.config.space import baseline_point, searched_entries, searched_inference_entries
from uvar_tune.errors import ConfigError
from uvar_tune.io.uri import redact_url
from uvar_tune.study_dir import StudyDirectory, resolve_root

logger = logging.getLogger(__name__)

_ENDED = ("COMPLETE", "PRUNED", "FAIL")


def preview_study(config: Config, *, phase: str | None = None) -> None:
    """Log trials, space, directory, concurrent trials on the real resources, expected hours and bytes.

    Args:
        config: of the study.
        phase: as in `run_study`.

    Raises:
        ConfigError: the study cannot run, here or at all.
    """
    phases = phases_of(phase)
    check_study(config, phases)
    files = StudyDirectory(resolve_root(config.run.root), config.study.name)
    check_images(config)
    check_study_directory(config, files)
    if not files.config.exists():
        check_warm_start(config)
    results = _load_results(config, files)
    forecasts = _forecast_phases(config, files, phases, results)
    concurrent, resources = _check_machine(config)
    logger.info(f"study {files.name!r} below {files.root}{' (exists, would resume)' if files.config.exists() else ''}")
    trials = _search_trials(config, phases)
    if trials:
        _log_search(config, trials)
    logger.info(f"trials at once: {concurrent}; {resources}")
    if trials:
        logger.info(_estimate(config, trials, results, concurrent))
    for line in forecasts:
        logger.info(line)
    logger.info(f"MLflow: {redact_url(files.tracking_uri())}")


def _load_results(config: Config, files: StudyDirectory) -> StudyResults | None:
    """The results so far; None if the study does not exist yet."""
    if not files.config.exists():
        return None
    from uvar_tune.search.load import load_results
    from uvar_tune.search.storage import require_existing_study

    exists = require_existing_study(files.storage_url(config), files.name, files.directory)
    return load_results(config, files) if exists else None


# The search


def _search_trials(config: Config, phases: tuple[str, ...]) -> int:
    """How many trials the search has after these phases; 0 if none of them searches."""
    study = config.study
    if {SEARCH, "refine"} & set(phases):
        return study.trials
    return min(study.trials, study.startup_trials + 1) if "explore" in phases else 0


def _log_search(config: Config, trials: int) -> None:
    t = config.training
    logger.info(
        f"{trials} trials of {t.images:,} images ({t.images // t.batch_size:,} steps of {t.batch_size}); "
        f"objective {config.study.metric} at {config.evaluation.samples:,} samples, sampler {config.study.sampler}"
    )
    for name, entry in searched_entries(config).items():
        values = (
            ", ".join(map(str, entry.choices))
            if entry.choices
            else f"{entry.low:g} … {entry.high:g}{' (log)' * entry.log}"
        )
        logger.info(f"  {name}: {values}  [{entry.role}]")
    if config.inference.search == "per_checkpoint":
        scales = ", ".join(f"{scale:g}" for scale in config.inference.search_cfg_scales)
        names = dict.fromkeys((*config.inference.search_axes, *searched_inference_entries(config)))
        others = ", ".join(f"inference.{name}" for name in names if name != "cfg_scale")
        logger.info(f"  inference.cfg_scale: each checkpoint scored at {scales}" + f"; with it {others}" * bool(others))
    for rung in config.study.rungs:
        logger.info(
            f"  rung at {rung:,} images: {config.study.pruning_metric} of {config.study.rung_samples:,} samples, "
            f"{config.study.pruner}"
        )


def _check_machine(config: Config) -> tuple[int, str]:
    """Check resources and inputs on the cluster at RAY_ADDRESS, else on this machine.

    Returns:
        How many trials would run at once, and the request and the resources in words.

    Raises:
        ConfigError: not even one trial fits and no autoscaler could add nodes, or an input cannot be used.
    """
    from uvar_tune.ray_backend.autoscaler import has_autoscaler
    from uvar_tune.ray_backend.capacity import (
        count_fitting_trials,
        describe_cluster,
        describe_request,
        local_resources,
        node_resources,
    )
    from uvar_tune.ray_backend.cluster import ray_cluster, run_as_task
    from uvar_tune.trial.preflight import check_inputs

    run, grows = config.run, False
    if os.environ.get("RAY_ADDRESS"):
        with ray_cluster():
            fits, grows = count_fitting_trials(run, node_resources()), has_autoscaler()
            resources = f"the cluster has {describe_cluster()}"
            if fits >= 1:
                run_as_task(config, check_inputs, config)
    else:
        nodes = local_resources()
        fits = count_fitting_trials(run, nodes)
        resources = f"this machine has {nodes[0]['CPU']:g} CPUs, {nodes[0]['GPU']:g} GPUs"
        if fits >= 1:
            check_inputs(config)
    if fits < 1 and not grows:
        raise ConfigError(f"{describe_request(run)}; {resources}", where="run.workers")
    concurrent = run.max_concurrent if grows and run.max_concurrent else min(fits, run.max_concurrent or fits)
    request = (
        f"; the autoscaler would be asked for more nodes; the first trial waits {run.wait_resources_sec:g} s at most"
    )
    return max(1, concurrent), f"{describe_request(run)}; {resources}{request * grows}"


def _estimate(config: Config, trials: int, results: StudyResults | None, concurrent: int) -> str:
    """Hours and bytes of the remaining trials, measured on the finished ones.

    Before any trial has finished: bytes of the baseline's checkpoints; hours depend on the hardware and are unknown.
    """
    finished = _timed_trials(results)
    if not finished:
        count, size = _checkpoint_count(config), _checkpoint_bytes(config)
        kept = max(1, min(count, config.run.checkpoint_bytes // size))
        return (
            f"expected: {kept} checkpoints of {size / 2**20:,.1f} MiB a trial (run.checkpoint_bytes bounds them), "
            f"{trials * kept * size / 2**30:,.2f} GiB in all; hours: unknown until a trial of this study has "
            "finished here (the baseline is the first)"
        )
    seconds = sum(trial.seconds for trial in finished) / len(finished)
    size = sum(_directory_bytes(trial.directory) for trial in finished) / len(finished)
    remaining = max(0, trials - sum(trial.state in _ENDED for trial in results.trials))
    hours = math.ceil(remaining / concurrent) * seconds / 3600
    return (
        f"expected, from {len(finished)} finished trials: {seconds / 60:.1f} minutes and "
        f"{size / 2**20:,.1f} MiB a trial, "
        f"{hours:.2f} hours and {remaining * size / 2**30:,.2f} GiB for the {remaining} that are left"
    )


def _timed_trials(results: StudyResults | None) -> list[TrialResult]:
    """The finished trials whose duration is known."""
    return [trial for trial in results.trials if trial.state == "COMPLETE" and trial.seconds] if results else []


def _checkpoint_count(config: Config) -> int:
    """How many checkpoints a trial writes: at each interval, at rungs, and at the end."""
    from uvar_tune.trial.trial import checkpoint_images

    images, interval = config.training.images, checkpoint_images(config)
    return images // interval + sum(1 for rung in {*config.study.rungs, images} if rung % interval)


def _checkpoint_bytes(config: Config) -> int:
    """Size of one checkpoint of the baseline: float32 weights, AdamW's two moments, and averaged weights if any.

    The network is built on the meta device, for ten classes: their true number depends on the images.
    """
    import torch

    from uvar_tune.trial.factory import new_var, open_tokenizer

    sizes = open_tokenizer(config.tokenizer.path, config) if config.tokenizer.path else config.tokenizer
    with torch.device("meta"):
        var = new_var(config.with_values(baseline_point(config)), sizes, num_classes=10, seed=0, empty=True)
    return 4 * sum(parameter.numel() for parameter in var.parameters()) * (4 if config.training.ema else 3)


def _directory_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


# The other phases


def _forecast_phases(
    config: Config, files: StudyDirectory, phases: tuple[str, ...], results: StudyResults | None
) -> list[str]:
    """One line for each phase that does not search.

    Raises:
        ConfigError: the first phase needs a finished trial, and there is none.
    """
    from uvar_tune.analysis.confirmation import BASELINE

    ranked = [trial for trial in results.ranked() if trial.kind != BASELINE] if results else []
    check_first_phase(phases, files.name, lambda: bool(ranked))
    forecasts = {
        "calibrate": _forecast_calibrate,
        "noise": _forecast_noise,
        "inference": _forecast_inference,
        "confirm": _forecast_confirm,
    }
    return [f"phase {name}: {forecasts[name](config, files, results)}" for name in phases if name in forecasts]


def _forecast_calibrate(config: Config, files: StudyDirectory, results: StudyResults | None) -> str:
    return (
        "trains no trial; builds the shared artifacts (tokenizer, tokens, references) that are missing, and shows them"
    )


def _forecast_noise(config: Config, files: StudyDirectory, results: StudyResults | None) -> str:
    study, done = config.study, _finished_replicates(config, files, "noise", results, None)
    return (
        f"the baseline under {study.noise_replicates} training seeds, {done} of them done, each scored on "
        f"{study.noise_samplings} sampling seeds; {_remaining_time(study.noise_replicates - done, results)}"
    )


def _forecast_inference(config: Config, files: StudyDirectory, results: StudyResults | None) -> str:
    return (
        f"trains no trial; scores the {config.study.confirm_top} best and the baseline over "
        f"{', '.join(config.study.confirm_axes)} where scores are missing; its duration cannot be estimated"
    )


def _forecast_confirm(config: Config, files: StudyDirectory, results: StudyResults | None) -> str:
    from uvar_tune.analysis.confirmation import BASELINE, confirm_arms

    study = config.study
    nuisance = any(entry.role == "nuisance" for entry in config.space.values())
    tuning = f"first a search of the baseline's own nuisance parameters, {study.trials} trials at most; " * nuisance
    axes = f", each scored over {', '.join(study.confirm_axes)}"
    if not results or all(trial.kind == BASELINE for trial in results.ranked()):
        return (
            f"{tuning}at most {study.confirm_replicates} replicates of {4 + study.confirm_top} arms{axes}; "
            "the arms depend on the search"
        )
    arms = list(confirm_arms(config, results, {}))
    done = _finished_replicates(config, files, "confirm", results, set(arms))
    remaining = len(arms) * study.confirm_replicates - done
    return (
        f"{tuning}{len(arms)} arms ({', '.join(arms)}) of at most {study.confirm_replicates} replicates{axes}, "
        f"{done} of them done; {_remaining_time(remaining, results)}"
    )


def _finished_replicates(
    config: Config, files: StudyDirectory, phase: str, results: StudyResults | None, arms: set[str] | None
) -> int:
    """How many replicates of a phase have ended; 0 if it has other arms than ``arms``, because then it starts again."""
    if results is None:
        return 0
    from uvar_tune.search.replicates import load_replicates
    from uvar_tune.search.storage import open_storage

    replicates = load_replicates(open_storage(files.storage_url(config)), files.name, phase)
    if arms is not None and not {replicate.arm for replicate in replicates} <= arms:
        return 0
    return sum(replicate.state in _ENDED for replicate in replicates)


def _remaining_time(count: int, results: StudyResults | None) -> str:
    """The remaining trainings in words, with hours if trials have finished."""
    finished = _timed_trials(results)
    if count <= 0:
        return "nothing is left to train"
    if not finished:
        return f"{count} trainings are left; hours: unknown until a trial of this study has finished here"
    seconds = sum(trial.seconds for trial in finished) / len(finished)
    return (
        f"{count} trainings are left, {count * seconds / 3600:.2f} hours one after the other at "
        f"{seconds / 60:.1f} minutes each, as the trials took; scores at more points take longer"
    )
