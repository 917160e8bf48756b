"""A study from its configuration to its exported best trial. The same call resumes it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from uvar_tune.commands.checks import check_first_phase, check_images, check_study, check_warm_start, phases_of
from uvar_tune.config.schema import Config
from uvar_tune.study_dir import StudyDirectory, resolve_root

if TYPE_CHECKING:
    from uvar_tune.commands.phases import Phases
    from uvar_tune.commands.session import RunSession
    from uvar_tune.commands.summary import StudyOutcome
    from uvar_tune.specs import Assets, StudyCallbacks
    from uvar_tune.tracking import Tracker

logger = logging.getLogger(__name__)


def run_study(
    config: Config, *, phase: str | None = None, callbacks: StudyCallbacks | None = None, tracker: Tracker | None = None
) -> StudyOutcome:
    """Run what is missing of a study and summarise it.

    Args:
        config: of the study.
        phase: the phase to run, or `all`; by default the search (explore, then refine).
        callbacks: notified of trials, rungs and the end of the study.
        tracker: used instead of MLflow.

    Returns:
        The results and the files written. `StudyOutcome.succeeded` is False if no trial has a score, or the baseline
        ended without one.

    Raises:
        ConfigError: invalid input; found before anything is trained.
        InfrastructureError: no disk space, no storage, or no node that holds a trial; the same call continues.
        KeyboardInterrupt: Ctrl-C or SIGTERM; running trials have saved a checkpoint.
    """
    phases = phases_of(phase)
    check_study(config, phases)
    files = StudyDirectory(resolve_root(config.run.root), config.study.name)

    from uvar_tune.commands.session import RunSession  # PyTorch is imported after these checks

    with RunSession(config, files, tracker=tracker) as session:
        files.verify_config(config)
        logger.info(f"study {files.name!r} in {files.directory}")
        outcome = _run_phases(session, phases, callbacks)
    if callbacks is not None:
        callbacks.on_study_end(outcome.results)
    return outcome


def _run_phases(session: RunSession, names: tuple[str, ...], callbacks: StudyCallbacks | None) -> StudyOutcome:
    """Run the phases that have work left. A new study is created after all of its inputs have been checked."""
    from uvar_tune.commands.summary import summarize
    from uvar_tune.search.storage import require_existing_study

    config, files = session.config, session.files
    if require_existing_study(files.storage_url(config), files.name, files.directory):
        phases = _create_or_resume(session)
        phases.check(names)
        if not phases.pending(names):
            reason = phases.search().stop_reason()
            logger.info(reason or "all trials have finished; nothing to run (a larger --trials extends the study)")
            return summarize(config, files)
    else:
        check_first_phase(names, files.name, lambda: False)
        check_warm_start(config)
    check_images(config)
    phases = _train(session, names, callbacks)
    if reason := phases.search().stop_reason():
        logger.info(reason)
    outcome = summarize(config, files, session.tracker, cpu_sec=session.cpu_meter.seconds)
    session.status = "FINISHED" if outcome.succeeded else "FAILED"
    return outcome


def _create_or_resume(session: RunSession) -> Phases:
    """The phases of the study, which is created in its directory and in the storage if it does not exist."""
    from uvar_tune.commands.phases import Phases
    from uvar_tune.search.storage import verify_directory_owner

    session.files.create_or_verify(session.config)
    phases = Phases(session.config, session.files)
    verify_directory_owner(phases.search().storage, session.files.name, session.files.directory)
    return phases


def _train(session: RunSession, names: tuple[str, ...], callbacks: StudyCallbacks | None) -> Phases:
    from uvar_tune.commands.callbacks import NotifyingRunner
    from uvar_tune.ray_backend.tuner import TuneRunner
    from uvar_tune.search.objectives import directions
    from uvar_tune.specs import StudyCallbacks
    from uvar_tune.tracking.parameters import saved_view, study_parameters, study_tags
    from uvar_tune.trial.preflight import check_inputs

    config, files = session.config, session.files
    with session.ray():
        session.run_as_task(check_inputs, config)
        phases = _create_or_resume(session)
        session.start_tracking(params=study_parameters(config), tags=study_tags(files.name, config.study.question))
        session.tracker.save_view(**saved_view(config, directions(config)[0]))
        session.tracker.log_artifact(None, files.config, "")
        assets = session.prepare_assets()
        _check_protocol(session, phases, assets)
        facts = {f"prepare/{key}": value for key, value in assets.facts.items() if isinstance(value, float)}
        session.tracker.log_study_metrics(facts)
        runner = TuneRunner(config, files, session.tracker, session.shutdown, session.follower, assets)
        runner = NotifyingRunner(runner, callbacks or StudyCallbacks())
        for name in names:
            phases.run(name, runner, session.concurrent_trials)
            if session.shutdown.stop_requested:
                raise KeyboardInterrupt
    return phases


def _check_protocol(session: RunSession, phases: Phases, assets: Assets) -> None:
    """Raise `ConfigError` if scores from this machine would not be comparable with those that the study has."""
    from uvar_tune.analysis.results import require_same_protocol
    from uvar_tune.search.load import stored_protocol
    from uvar_tune.search.storage import verify_directory_owner
    from uvar_tune.trial.scoring import current_protocol

    files, storage = session.files, phases.search().storage
    verify_directory_owner(storage, files.name, files.directory)  # again: two processes may have started at once
    stored = stored_protocol(storage, files.name)
    if stored:
        require_same_protocol(
            session.run_as_task(current_protocol, session.config, assets),
            stored,
            where="here and now",
            of=f"the trials of study {files.name!r}; go on where they were scored, or choose another --study name",
        )
