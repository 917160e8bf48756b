"""The work of a study that has been claimed: prepare, search, report."""

from __future__ import annotations

import logging

from uvar_tune import provenance
from uvar_tune.analysis.results import require_same_protocol
from uvar_tune.commands.checks import check_folder
from uvar_tune.commands.phases import Phases
from uvar_tune.commands.summary import finish
from uvar_tune.config.schema import Config
from uvar_tune.console import CpuTimeMeter, LogFollower
from uvar_tune.errors import FAILED, INTERRUPTED, InfrastructureError
from uvar_tune.ray_backend.graceful_stop import GracefulShutdown
from uvar_tune.ray_backend.tuner import TuneRunner
from uvar_tune.search.load import stored_protocol
from uvar_tune.search.storage import require_existing_study, verify_directory_owner
from uvar_tune.specs import Assets
from uvar_tune.study_dir import StudyDirectory
from uvar_tune.tracking import CLOSE_TIMEOUT_SEC, STOP_TIMEOUT_SEC, MLflowTracker
from uvar_tune.tracking.parameters import provenance_tags, study_parameters

logger = logging.getLogger(__name__)


def work_on(config: Config, files: StudyDirectory, steps: tuple[str, ...]) -> int:
    """Run what is missing of these phases; exit code as `run_study` has it."""
    require_existing_study(files.storage_url(config), files.name, files.directory)
    phases = Phases(config, files)
    verify_directory_owner(phases.search().storage, files.name, files.directory)
    phases.check(steps)
    if not phases.pending(steps):
        logger.info(
            phases.search().halted() or "all trials have finished; nothing to run (a larger --trials extends the study)"
        )
        return finish(config, files, None, {})
    check_folder(config)
    sink = files.sink()
    code = FAILED
    try:
        code = _run(config, files, phases, steps, sink)
    except InfrastructureError:
        sink.finish_study("KILLED")
        raise
    except KeyboardInterrupt:
        code = INTERRUPTED
        raise
    finally:
        sink.close(STOP_TIMEOUT_SEC if code == INTERRUPTED else CLOSE_TIMEOUT_SEC)
    return code


def _run(config: Config, files: StudyDirectory, phases: Phases, steps: tuple[str, ...], sink: MLflowTracker) -> int:
    from uvar_tune.ray_backend.capacity_monitor import CapacityMonitor
    from uvar_tune.ray_backend.cluster import capacity, cluster
    from uvar_tune.ray_backend.shared_filesystem import check_shared_filesystem

    sink.start_study(params=study_parameters(config), tags=provenance_tags(provenance.origin()))
    sink.log_artifact(None, files.config, "")
    follower, signals = LogFollower(), GracefulShutdown()
    with CpuTimeMeter() as meter, cluster(), signals:
        concurrent = capacity(config)
        with CapacityMonitor(config):
            check_shared_filesystem(files.root)
            assets = prepare_assets(config, files, follower)
            _check_protocol(config, files, phases, assets)
        sink.log_study_metrics(
            {f"prepare/{key}": value for key, value in assets.facts.items() if isinstance(value, float)}
        )
        runner = TuneRunner(config, files, sink, signals, follower, assets)
        for step in steps:
            phases.run(step, runner, concurrent)
            if signals.asked.is_set():
                sink.finish_study("KILLED")
                logger.info("stopped; what was in flight keeps its checkpoints. The same command continues.")
                return INTERRUPTED
    if halted := phases.search().halted():
        logger.info(halted)
    return finish(config, files, sink, {"all processes": meter.seconds})


def _check_protocol(config: Config, files: StudyDirectory, phases: Phases, assets: Assets) -> None:
    """What is scored from here on must be comparable with what the study holds; ConfigError before anything is trained."""
    from uvar_tune.ray_backend.cluster import run_as_task
    from uvar_tune.trial.scoring import current_protocol

    storage = phases.search().storage
    verify_directory_owner(storage, files.name, files.directory)  # again: two may have begun at once
    known = stored_protocol(storage, files.name)
    if known:
        require_same_protocol(
            run_as_task(config, current_protocol, config, assets),
            known,
            where="here and now",
            of=f"the trials of study {files.name!r}; go on where they were scored, or take another --study name",
        )


def prepare_assets(config: Config, files: StudyDirectory, follower: LogFollower) -> Assets:
    """The assets of a study, made on a node that has what a worker needs; its progress is followed."""
    from uvar_tune.ray_backend.cluster import run_as_task
    from uvar_tune.trial.assets import prepare

    record = files.directory / "prepare.jsonl"
    with follower.following("prepare", record, config.tokenizer.images):
        return run_as_task(config, prepare, config, files.cache, record)
