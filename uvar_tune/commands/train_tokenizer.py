"""A run of `uvar-tune tokenizer`: the tokenizer of a configuration trained by a group of workers, shown, handed over.

run.root/NAME-tokenizer/{tokenizer.yaml, tokenizer/, trials/00000/{metrics.jsonl, checkpoints/<images>/, samples/}}
"""

from __future__ import annotations

import logging
import re
import time
from pathlib import Path
from typing import Any

from uvar_tune import provenance
from uvar_tune.config.schema import NAME_PATTERN, Config
from uvar_tune.console import LogFollower
from uvar_tune.errors import FAILED, INTERRUPTED, ConfigError
from uvar_tune.io.atomic import write_text_atomic
from uvar_tune.io.disk import raise_on_disk_full
from uvar_tune.io.safe_load import dump_yaml, parse_yaml, read_text
from uvar_tune.io.uri import redact_url
from uvar_tune.model import save_official
from uvar_tune.model.official import OFFICIAL_RATIOS
from uvar_tune.ray_backend.graceful_stop import GracefulShutdown
from uvar_tune.specs import OutcomeKind, TokenizerSpec, TrialOutcome, worker_config
from uvar_tune.study_dir import StudyDirectory, resolve_root
from uvar_tune.tracking import CLOSE_TIMEOUT_SEC, STOP_TIMEOUT_SEC, MLflowTracker
from uvar_tune.tracking.parameters import provenance_tags, study_parameters
from uvar_tune.training import load_tokenizer, require_same
from uvar_tune.trial.factory import tokenizer_seed
from uvar_tune.trial.outcome_file import read_outcome
from uvar_tune.trial.trial import write_config

logger = logging.getLogger(__name__)


def run_tokenizer(config: Config, name: str, *, official: str | None) -> int:
    """Train what is missing of the tokenizer and say where it lies; exit code 0 when it is there, 130 when interrupted."""
    _check(config, name, official)
    files = StudyDirectory(resolve_root(config.run.root), f"{name}-tokenizer")
    files.prepare()
    place, known = files.directory / "tokenizer", files.directory / "tokenizer.yaml"
    seeds = {"tokenizer": tokenizer_seed(config)}
    with files.lock(), raise_on_disk_full(files.directory):
        if known.exists():
            require_same(
                parse_yaml(read_text(known), str(known)),
                _asked(config),
                where=f"tokenizer {name!r} in {files.directory}",
            )
        outcome = read_outcome(files.trial(0), seeds)
        if outcome is not None and outcome.kind is OutcomeKind.COMPLETE:
            logger.info("this tokenizer has been trained; nothing to run (--name starts another)")
        else:
            try:
                outcome = _train(config, files, known, place, seeds)
            except KeyboardInterrupt:
                logger.info("stopped; the last checkpoint is kept. The same command continues.")
                return INTERRUPTED
    if outcome.kind is not OutcomeKind.COMPLETE:
        logger.info(f"{outcome.kind.value}: {outcome.description}")
        return FAILED
    return _hand_over(config, outcome, files, place, official)


def _check(config: Config, name: str, official: str | None) -> None:
    """What can be refused without looking at the images."""
    t = config.tokenizer
    if t.path is not None:
        raise ConfigError(f"{t.path!r} is a tokenizer already; leave it out to train one", where="tokenizer.path")
    if not re.match(NAME_PATTERN, name):
        raise ConfigError(f"{name!r} is no name (letters, digits, '.', '_', '-')", where="--name")
    if t.batch_size % config.run.workers:
        low = t.batch_size // config.run.workers * config.run.workers
        raise ConfigError(
            f"{t.batch_size} is not a multiple of run.workers {config.run.workers}",
            where="tokenizer.batch_size",
            nearest=str(low or config.run.workers),
        )
    if official is not None and (Path(official).is_dir() or not Path(official).absolute().parent.is_dir()):
        raise ConfigError(f"{official!r} is no file in a directory that exists", where="--official")
    if official is not None and t.quant_resi not in OFFICIAL_RATIOS:
        raise ConfigError(
            f"tokenizer.quant_resi {t.quant_resi:g} is not in an official file, whose readers take 0.5",
            where="--official",
        )


def _asked(config: Config) -> dict[str, Any]:
    """The settings that make the tokenizer, by section."""
    tree = config.tree()
    return {
        "study": {"seed": config.study.seed},
        "data": tree["data"],
        "tokenizer": {key: value for key, value in tree["tokenizer"].items() if key not in ("path", "crops")},
    }


def _train(config: Config, files: StudyDirectory, known: Path, place: Path, seeds: dict[str, int]) -> TrialOutcome:
    """Run the worker group, followed by MLflow and the user; how it ended."""
    sink = files.sink()
    status, close_sec = "KILLED", STOP_TIMEOUT_SEC
    try:
        outcome = _on_ray(config, files, known, place, seeds, sink)
        status = "FINISHED" if outcome.kind is OutcomeKind.COMPLETE else "FAILED"
        close_sec = CLOSE_TIMEOUT_SEC
        metrics = {f"held_out/{key}": value for key, value in outcome.scores.items()}
        sink.finish_trial(0, status=status, metrics=metrics)
        return outcome
    finally:
        if known.exists():  # else it was refused, and there is nothing to show
            sink.finish_study(status)
        sink.close(close_sec)


def _on_ray(
    config: Config, files: StudyDirectory, known: Path, place: Path, seeds: dict[str, int], sink: MLflowTracker
) -> TrialOutcome:
    from uvar_tune.ray_backend.capacity_monitor import CapacityMonitor
    from uvar_tune.ray_backend.cluster import capacity, cluster, run_as_task
    from uvar_tune.ray_backend.shared_filesystem import check_shared_filesystem
    from uvar_tune.ray_backend.trainer import run_worker_group
    from uvar_tune.ray_backend.worker import work_on_tokenizer
    from uvar_tune.trial.tokenizer_trial import check_run

    directory, follower = files.trial(0), LogFollower()
    with cluster(), GracefulShutdown() as signals, CapacityMonitor(config):
        capacity(config)
        check_shared_filesystem(files.root)
        if not known.exists():
            run_as_task(config, check_run, config)
            write_text_atomic(known, dump_yaml(_asked(config)))
        write_config(directory, config)
        tags = {**provenance_tags(provenance.origin()), "uvar.kind": "tokenizer"}
        sink.start_study(params={}, tags=tags)
        parameters = {
            key: value for key, value in study_parameters(config).items() if key.startswith(("data.", "tokenizer."))
        }
        sink.start_trial(0, directory, params={**parameters, "study.seed": config.study.seed}, tags=tags)
        spec = TokenizerSpec(
            config=worker_config(config),
            seeds=seeds,
            directory=str(directory),
            tokenizer=str(place),
            run_name=f"tokenizer-{time.time_ns()}",
            ray_directory=str(files.directory / "ray"),
            worker_retries=config.run.max_attempts - 1,
        )
        with follower.following("tokenizer", directory / "metrics.jsonl", config.tokenizer.images):
            return run_worker_group(spec, signals, work_on_tokenizer)


def _hand_over(config: Config, outcome: TrialOutcome, files: StudyDirectory, place: Path, official: str | None) -> int:
    scores = outcome.scores
    vqvae = load_tokenizer(place)
    logger.info(
        f"held-out reconstruction MSE {scores['reconstruction_mse']:.4f} (pixels in [-1, 1]), {scores['codes_in_use']:.0f} of "
        f"{config.tokenizer.vocab_size} codes in use ("
        + ", ".join(f"{scores[f'code_usage/scale_{k}']:.0%}" for k in range(1, len(vqvae.scales) + 1))
        + " at the scales)"
    )
    pictures = sorted((files.trial(0) / "samples").glob("*.png"))
    if pictures:
        logger.info(f"reconstructions: {pictures[-1]}")
    logger.info(f"MLflow: {redact_url(files.tracking_uri())}")
    if official is not None:
        save_official(vqvae, vae_path=official)
        logger.info(f"official layout: {official}")
    logger.info(f"tokenizer: {place}\nuse it with tokenizer.path={place}")
    return 0
