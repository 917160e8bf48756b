"""One configuration on its own: a final run, or the replay of a trial, which must reproduce its scores."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import time
from pathlib import Path
from typing import Any

from uvar_tune import provenance, seeds
from uvar_tune.commands.checks import check_name, check_weights, is_config_error
from uvar_tune.commands.session import RunSession
from uvar_tune.config.schema import Config
from uvar_tune.errors import ConfigError, InfrastructureError
from uvar_tune.search.objectives import check_objective
from uvar_tune.specs import OutcomeKind, TrialOutcome, TrialSpec, worker_config
from uvar_tune.study_dir import StudyDirectory, resolve_root
from uvar_tune.tracking import Tracker
from uvar_tune.tracking.model_files import selected_sampling
from uvar_tune.tracking.parameters import provenance_tags, run_parameters, score_parameters
from uvar_tune.training import latest_valid
from uvar_tune.trial.outcome_file import read_outcome
from uvar_tune.trial.preflight import check_inputs
from uvar_tune.trial.trial import write_config

logger = logging.getLogger(__name__)

PURPOSES = ("initialisation", "training", "sampling-a", "sampling-b")


@dataclasses.dataclass(frozen=True)
class FinalRunOutcome:
    """How a final run or replay ended.

    Args:
        outcome: of its only trial.
        directory: of that trial, with its checkpoints.
        replay_equal: whether a replay reproduced every score bit for bit; None if it was not a replay.
    """

    outcome: TrialOutcome
    directory: Path
    replay_equal: bool | None = None

    @property
    def succeeded(self) -> bool:
        """Whether it has a score and, of a replay, whether that is the same."""
        return self.outcome.kind is OutcomeKind.COMPLETE and self.replay_equal is not False


def run_final(config: Config, name: str, *, replay: bool = False, tracker: Tracker | None = None) -> FinalRunOutcome:
    """Train and score ``config`` below ``run.root/NAME-final`` (or ``NAME-replay``).

    Args:
        config: of an exported trial.
        name: of the run.
        replay: repeat the trial with its own seeds and compare the scores.
        tracker: used instead of MLflow.

    Raises:
        ConfigError: invalid input.
        InfrastructureError: the same call continues.
        KeyboardInterrupt: Ctrl-C or SIGTERM; a checkpoint was saved.
    """
    check_objective(config)
    config = config.with_values(
        {"inference.search": "joint"} if replay else config.final
    )  # joint: at the trial's point
    check_name(name)
    check_weights(config)
    files = StudyDirectory(resolve_root(config.run.root), f"{name}-replay" if replay else f"{name}-final")
    with RunSession(config, files, tracker=tracker) as session:
        files.verify_config(config)
        outcome = _train(session, replay)
        complete = outcome.kind is OutcomeKind.COMPLETE
        session.status = "FINISHED" if complete else "FAILED"
    if not complete:
        logger.info(f"{outcome.kind.value}: {outcome.description}")
        return FinalRunOutcome(outcome, files.trial(0))
    logger.info(
        f"{config.study.metric} {outcome.value:.4g} at CFG {outcome.inference_parameters['inference.cfg_scale']:g}; "
        f"checkpoints in {files.trial(0) / 'checkpoints'}"
    )
    return FinalRunOutcome(outcome, files.trial(0), _compare(config, outcome.scores) if replay else None)


def _train(session: RunSession, replay: bool) -> TrialOutcome:
    config, files = session.config, session.files
    directory, run_seeds = files.trial(0), _seeds(config, replay)
    with session.ray():
        session.run_as_task(check_inputs, config)
        files.create_or_verify(config)
        session.start_tracking(
            params={"verdict": config.verdict or "none"}, tags={"uvar.kind": "replay" if replay else "final"}
        )
        assets = session.prepare_assets()
        if replay and read_outcome(directory, run_seeds):
            shutil.rmtree(directory)  # a finished replay starts again
        write_config(directory, config)
        parameters = run_parameters(config, {"verdict": config.verdict or "none"})
        session.tracker.start_trial(0, directory, params=parameters, tags=provenance_tags(provenance.origin()))
        spec = TrialSpec(
            config=worker_config(config),
            number=0,
            seeds=run_seeds,
            assets=assets,
            started=time.time(),
            directory=str(directory),
            baseline_directory=str(directory),
            cache=str(files.cache),
            run_name=f"train-{time.time_ns()}",
            ray_directory=str(files.directory / "ray"),
            worker_retries=config.run.max_attempts - 1,
        )
        outcome = session.run_worker_group(spec, "training", config.training.images)
    if outcome is None:
        raise InfrastructureError("the workers ended without an outcome; the same command continues")
    if outcome.kind is OutcomeKind.COMPLETE:
        parameters = {**outcome.inference_parameters, **score_parameters(outcome.protocol, run_seeds)}
        session.tracker.finish_trial(0, status="FINISHED", metrics=outcome.scores, params=parameters)
        checkpoint = None if replay else latest_valid(directory / "checkpoints", on_skip=lambda path, reason: None)
        if checkpoint is not None:
            session.tracker.log_model(0, checkpoint, selected_sampling(outcome.inference_parameters))
    else:
        session.tracker.finish_trial(0, status="FAILED")
    if is_config_error(outcome):
        raise ConfigError(outcome.message)
    return outcome


def _seeds(config: Config, replay: bool) -> dict[str, int]:
    """A replay has the trial's own seeds. A final run has fresh ones, so that its score carries no selection bias."""
    if replay:
        return config.provenance["seeds"]
    return {purpose: seeds.derive(config.study.seed, "final", 0, purpose) for purpose in PURPOSES}


def _compare(config: Config, scores: dict[str, Any]) -> bool:
    """Log each score of the trial and of its replay, and differences of origin; return whether all scores are equal."""
    then = config.provenance["scores"]
    equal = True
    for name in sorted(then):
        same = scores.get(name) == then[name]
        equal = equal and same
        logger.info(f"  {name:24} then {then[name]!r:24} now {scores.get(name)!r:24} {'equal' if same else 'DIFFERS'}")
    if equal:
        logger.info("replay: every number is the same, bit for bit")
        return True
    origin = provenance.origin()
    for key in ("commit", "source", "versions", "machine"):
        before = config.provenance.get(key)
        if before != origin[key]:
            logger.info(f"  {key} was {before}, is {origin[key]}")
    logger.info("replay: the numbers differ")
    return False
