"""One configuration on its own: a final run, or the replay of a trial that must give its numbers again."""

from __future__ import annotations

import logging
import re
import shutil
import time

from uvar_tune import provenance, seeds
from uvar_tune.commands.checks import check_weights
from uvar_tune.commands.session import prepare_assets
from uvar_tune.config.schema import NAME_PATTERN, Config
from uvar_tune.console import LogFollower
from uvar_tune.errors import ConfigError
from uvar_tune.io.disk import raise_on_disk_full
from uvar_tune.ray_backend.graceful_stop import GracefulShutdown
from uvar_tune.search.objectives import check_objective
from uvar_tune.specs import OutcomeKind, TrialOutcome, TrialSpec, worker_config
from uvar_tune.study_dir import StudyDirectory, resolve_root
from uvar_tune.tracking import CLOSE_TIMEOUT_SEC, STOP_TIMEOUT_SEC, MLflowTracker
from uvar_tune.tracking.parameters import provenance_tags, run_parameters, score_parameters
from uvar_tune.trial.outcome_file import read_outcome
from uvar_tune.trial.trial import write_config

logger = logging.getLogger(__name__)

PURPOSES = ("initialisation", "training", "sampling-a", "sampling-b")


def run_final(config: Config, name: str, *, replay: bool) -> int:
    """Train and score ``config`` below ``run.root/NAME``; exit code 0 when it has a score (and, replayed, the same)."""
    check_objective(config)
    config = config.with_values(
        {"inference.search": "joint"} if replay else config.final
    )  # at the point that the trial chose
    if not re.match(NAME_PATTERN, name):
        raise ConfigError(f"{name!r} is no name (letters, digits, '.', '_', '-')", where="--name")
    check_weights(config)
    files = StudyDirectory(resolve_root(config.run.root), f"{name}-replay" if replay else f"{name}-final")
    files.prepare()
    with files.lock(), raise_on_disk_full(files.directory):
        files.claim(config)
        sink = files.sink()
        sink.start_study(
            params={"verdict": config.verdict or "none"},
            tags={**provenance_tags(provenance.origin()), "uvar.kind": "replay" if replay else "final"},
        )
        status, close_sec = "KILLED", STOP_TIMEOUT_SEC
        try:
            outcome = _run(config, files, sink, replay)
            status = "FINISHED" if outcome.kind is OutcomeKind.COMPLETE else "FAILED"
            close_sec = CLOSE_TIMEOUT_SEC
        except KeyboardInterrupt:
            logger.info("stopped; its checkpoints are kept. The same command continues.")
            raise
        finally:
            sink.finish_study(status)
            sink.close(close_sec)
    if outcome.kind is not OutcomeKind.COMPLETE:
        logger.info(f"{outcome.kind.value}: {outcome.description}")
        return 1
    logger.info(
        f"{config.study.metric} {outcome.value:.4g} at CFG {outcome.inference_parameters['inference.cfg_scale']:g}; "
        f"checkpoints in {files.trial(0) / 'checkpoints'}"
    )
    return _compare(config, outcome) if replay else 0


def _run(config: Config, files: StudyDirectory, sink: MLflowTracker, replay: bool) -> TrialOutcome:
    from uvar_tune.ray_backend.capacity_monitor import CapacityMonitor
    from uvar_tune.ray_backend.cluster import capacity, cluster
    from uvar_tune.ray_backend.shared_filesystem import check_shared_filesystem
    from uvar_tune.ray_backend.trainer import run_worker_group

    directory, follower = files.trial(0), LogFollower()
    with cluster(), GracefulShutdown() as signals, CapacityMonitor(config):
        capacity(config)
        check_shared_filesystem(files.root)
        assets = prepare_assets(config, files, follower)
        if replay and read_outcome(directory, _seeds(config, replay)):
            shutil.rmtree(directory)  # a replay that has ended is made anew
        write_config(directory, config)
        sink.start_trial(
            0,
            directory,
            params=run_parameters(config, {"verdict": config.verdict or "none"}),
            tags=provenance_tags(provenance.origin()),
        )
        spec = TrialSpec(
            config=worker_config(config),
            number=0,
            seeds=_seeds(config, replay),
            assets=assets,
            started=time.time(),
            directory=str(directory),
            baseline_directory=str(directory),
            cache=str(files.cache),
            run_name=f"train-{time.time_ns()}",
            ray_directory=str(files.directory / "ray"),
            worker_retries=config.run.max_attempts - 1,
        )
        with follower.following("training", directory / "metrics.jsonl", config.training.images):
            outcome = run_worker_group(spec, signals)
        if outcome.kind is OutcomeKind.COMPLETE:
            parameters = {**outcome.inference_parameters, **score_parameters(outcome.protocol, spec.seeds)}
            sink.finish_trial(0, status="FINISHED", metrics=outcome.scores, params=parameters)
        else:
            sink.finish_trial(0, status="FAILED")
        return outcome


def _seeds(config: Config, replay: bool) -> dict[str, int]:
    """A replay takes the trial's own seeds; a final run fresh ones, so that it is no second look at a lucky draw."""
    if replay:
        return config.provenance["seeds"]
    return {purpose: seeds.derive(config.study.seed, "final", 0, purpose) for purpose in PURPOSES}


def _compare(config: Config, outcome: TrialOutcome) -> int:
    """Say for each score whether it came again, bit for bit; else what differs between then and now."""
    then, now = config.provenance["scores"], outcome.scores
    equal = True
    for name in sorted(then):
        same = now.get(name) == then[name]
        equal = equal and same
        logger.info(f"  {name:24} then {then[name]!r:24} now {now.get(name)!r:24} {'equal' if same else 'DIFFERS'}")
    if equal:
        logger.info("replay: every number is the same, bit for bit")
        return 0
    here = provenance.origin()
    for key in ("commit", "source", "versions", "machine"):
        before = config.provenance.get(key)
        if before != here[key]:
            logger.info(f"  {key} was {before}, is {here[key]}")
    logger.info("replay: the numbers differ")
    return 1
