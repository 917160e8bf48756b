"""The training of a tokenizer by a group of workers, and its export.

run.root/NAME-tokenizer/{tokenizer.yaml, tokenizer/, trials/00000/{metrics.jsonl, checkpoints/<images>/, samples/}}
"""

from __future__ import annotations

import dataclasses
import logging
import shlex
import time
from pathlib import Path
from typing import Any

from uvar_tune import provenance
from uvar_tune.commands.checks import check_name
from uvar_tune.commands.session import RunSession
from uvar_tune.config.schema import Config
from uvar_tune.errors import ConfigError
from uvar_tune.io.atomic import write_text_atomic
from uvar_tune.io.safe_load import dump_yaml, parse_yaml, read_text
from uvar_tune.io.uri import redact_url
from uvar_tune.model import save_official
from uvar_tune.model.official import OFFICIAL_RATIOS
from uvar_tune.specs import OutcomeKind, TokenizerSpec, TrialOutcome, worker_config
from uvar_tune.study_dir import StudyDirectory, resolve_root
from uvar_tune.tracking import Tracker
from uvar_tune.tracking.parameters import provenance_tags, study_parameters
from uvar_tune.training import load_tokenizer, require_same
from uvar_tune.trial.factory import tokenizer_seed
from uvar_tune.trial.outcome_file import read_outcome
from uvar_tune.trial.trial import write_config

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TokenizerOutcome:
    """How the training of a tokenizer ended.

    Args:
        outcome: of the training; its scores are those on held-out images.
        path: of the tokenizer, for `tokenizer.path`.
    """

    outcome: TrialOutcome
    path: Path

    @property
    def succeeded(self) -> bool:
        """Whether the tokenizer exists."""
        return self.outcome.kind is OutcomeKind.COMPLETE


def run_tokenizer(
    config: Config, name: str, *, official: str | None = None, tracker: Tracker | None = None
) -> TokenizerOutcome:
    """Train what is missing of a tokenizer below ``run.root/NAME-tokenizer``.

    Args:
        config: of which the sections `data` and `tokenizer` are used.
        name: of the run.
        official: file to which the tokenizer is also written in the layout of the official VAR release.
        tracker: used instead of MLflow.

    Raises:
        ConfigError: invalid input.
        InfrastructureError: the same call continues.
        KeyboardInterrupt: Ctrl-C or SIGTERM; a checkpoint was saved.
    """
    _check(config, name, official)
    files = StudyDirectory(resolve_root(config.run.root), f"{name}-tokenizer")
    seeds = {"tokenizer": tokenizer_seed(config)}
    with RunSession(config, files, tracker=tracker) as session:
        settings = _settings_file(files)
        if settings.exists():
            require_same(
                parse_yaml(read_text(settings), str(settings)),
                _settings(config),
                where=f"tokenizer {name!r} in {files.directory}",
            )
        outcome = read_outcome(files.trial(0), seeds)
        if outcome is not None and outcome.kind is OutcomeKind.COMPLETE:
            logger.info("this tokenizer has been trained; nothing to run (--name starts another)")
        else:
            outcome = _train(session, seeds)
    run = TokenizerOutcome(outcome, _path(files))
    if run.succeeded:
        _export(config, run, files, official)
    else:
        logger.info(f"{outcome.kind.value}: {outcome.description}")
    return run


def _check(config: Config, name: str, official: str | None) -> None:
    """Raise `ConfigError` for anything that can be found without looking at the images."""
    t = config.tokenizer
    if t.path is not None:
        raise ConfigError(f"{t.path!r} is a tokenizer already; leave it out to train one", where="tokenizer.path")
    check_name(name)
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


def _settings(config: Config) -> dict[str, Any]:
    """The settings that determine the tokenizer, by section."""
    tree = config.tree()
    return {
        "study": {"seed": config.study.seed},
        "data": tree["data"],
        "tokenizer": {key: value for key, value in tree["tokenizer"].items() if key not in ("path", "crops")},
    }


def _settings_file(files: StudyDirectory) -> Path:
    return files.directory / "tokenizer.yaml"


def _path(files: StudyDirectory) -> Path:
    return files.directory / "tokenizer"


def _train(session: RunSession, seeds: dict[str, int]) -> TrialOutcome:
    from uvar_tune.ray_backend import trainer
    from uvar_tune.trial.tokenizer_trial import check_run

    config, files = session.config, session.files
    directory = files.trial(0)
    with session.ray():
        if not _settings_file(files).exists():
            session.run_as_task(check_run, config)
            write_text_atomic(_settings_file(files), dump_yaml(_settings(config)))
        write_config(directory, config)
        session.start_tracking(params={}, tags={"uvar.kind": "tokenizer"})
        parameters = {
            key: value for key, value in study_parameters(config).items() if key.startswith(("data.", "tokenizer."))
        }
        session.tracker.start_trial(
            0,
            directory,
            params={**parameters, "study.seed": config.study.seed},
            tags={**provenance_tags(provenance.origin()), "uvar.kind": "tokenizer"},
        )
        spec = TokenizerSpec(
            config=worker_config(config),
            seeds=seeds,
            directory=str(directory),
            tokenizer=str(_path(files)),
            run_name=f"tokenizer-{time.time_ns()}",
            ray_directory=str(files.directory / "ray"),
            worker_retries=config.run.max_attempts - 1,
        )
        outcome = session.run_worker_group(spec, "tokenizer", config.tokenizer.images, trainer.train_tokenizer)
    session.status = "FINISHED" if outcome.kind is OutcomeKind.COMPLETE else "FAILED"
    metrics = {f"held_out/{key}": value for key, value in outcome.scores.items()}
    session.tracker.finish_trial(0, status=session.status, metrics=metrics)
    return outcome


def _export(config: Config, run: TokenizerOutcome, files: StudyDirectory, official: str | None) -> None:
    """Log scores and paths; write the official layout if requested."""
    scores = run.outcome.scores
    vqvae = load_tokenizer(run.path)
    usage = ", ".join(f"{scores[f'code_usage/scale_{k}']:.0%}" for k in range(1, len(vqvae.scales) + 1))
    logger.info(
        f"held-out reconstruction MSE {scores['reconstruction_mse']:.4f} (pixels in [-1, 1]), "
        f"{scores['codes_in_use']:.0f} of {config.tokenizer.vocab_size} codes in use ({usage} at the scales)"
    )
    images = sorted((files.trial(0) / "samples").glob("*.png"))
    if images:
        logger.info(f"reconstructions: {images[-1]}")
    logger.info(f"MLflow: {redact_url(files.tracking_uri())}")
    if official is not None:
        save_official(vqvae, vae_path=official)
        logger.info(f"official layout: {official}")
    logger.info(f"tokenizer: {run.path}")
    logger.info(f"use it with {shlex.quote(f'tokenizer.path={run.path}')}")
