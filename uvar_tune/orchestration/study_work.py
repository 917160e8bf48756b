"""The work of a study that has been claimed: prepare, search, report."""

from __future__ import annotations

import dataclasses
from typing import Any

from uvar_tune import provenance
from uvar_tune.config import Config
from uvar_tune.errors import FAILED, INTERRUPTED, Lost
from uvar_tune.orchestration.checks import check_folder
from uvar_tune.orchestration.finish import finish
from uvar_tune.orchestration.meter import CpuMeter
from uvar_tune.orchestration.phases import Phases
from uvar_tune.orchestration.progress import Follower
from uvar_tune.orchestration.runner import Runner
from uvar_tune.orchestration.signals import Interruptible
from uvar_tune.study.files import StudyFiles
from uvar_tune.study.place import require_own_directory, require_stored
from uvar_tune.study.protocol import require_same_protocol, stored_protocol
from uvar_tune.tracking.parameters import origin_tags, study_parameters
from uvar_tune.tracking.sink import CLOSE_SEC, STOPPED_SEC, MLflowSink


def work_on(config: Config, files: StudyFiles, steps: tuple[str, ...], say) -> int:
    """Run what is missing of these phases; exit code as `run_study` has it."""
    require_stored(files.storage_url(config), files.name, files.directory)
    phases = Phases(config, files, say)
    require_own_directory(phases.search().storage, files.name, files.directory)
    phases.check(steps)
    if not phases.pending(steps):
        say(phases.search().halted() or "all trials have finished; nothing to run (a larger --trials extends the study)")
        return finish(config, files, None, say, {})
    check_folder(config)
    sink = files.sink(say)
    code = FAILED
    try:
        code = _run(config, files, phases, steps, sink, say)
    except Lost:
        sink.finish_study("KILLED")
        raise
    except KeyboardInterrupt:
        code = INTERRUPTED
        raise
    finally:
        sink.close(STOPPED_SEC if code == INTERRUPTED else CLOSE_SEC)
    return code


def _run(config: Config, files: StudyFiles, phases: Phases, steps: tuple[str, ...], sink: MLflowSink, say) -> int:
    from uvar_tune.orchestration.nodes_watch import NodesWatch
    from uvar_tune.orchestration.resources import capacity, cluster
    from uvar_tune.orchestration.shared_root import check_shared

    sink.start_study(params=study_parameters(config), tags=origin_tags(provenance.origin()))
    sink.artifact(None, files.config, "")
    follower, signals = Follower(say), Interruptible(say)
    with CpuMeter() as meter, cluster(say), signals:
        concurrent = capacity(config, say)
        with NodesWatch(config, say):
            check_shared(files.root)
            assets = prepare_remotely(config, files, follower)
            _check_protocol(config, files, phases, assets)
        sink.study_metrics({f"prepare/{key}": value for key, value in assets["facts"].items() if isinstance(value, float)})
        runner = Runner(config, files, sink, signals, follower, assets, say)
        for step in steps:
            phases.run(step, runner, concurrent)
            if signals.asked.is_set():
                sink.finish_study("KILLED")
                say("stopped; what was in flight keeps its checkpoints. The same command continues.")
                return INTERRUPTED
    if halted := phases.search().halted():
        say(halted)
    return finish(config, files, sink, say, {"all processes": meter.seconds})


def _check_protocol(config: Config, files: StudyFiles, phases: Phases, assets: dict[str, Any]) -> None:
    """What is scored from here on must be comparable with what the study holds; ConfigError before anything is trained."""
    from uvar_tune.orchestration.judge import protocol_here
    from uvar_tune.orchestration.resources import remotely

    storage = phases.search().storage
    require_own_directory(storage, files.name, files.directory)  # again: two may have begun at once
    known = stored_protocol(storage, files.name)
    if known:
        require_same_protocol(remotely(config, protocol_here, config, assets, files.cache), known, where="here and now",
                              of=f"the trials of study {files.name!r}; go on where they were scored, or take another --study name")


def prepare_remotely(config: Config, files: StudyFiles, follower: Follower) -> dict[str, Any]:
    """The assets of a study, made on a node that has what a worker needs; its progress is followed."""
    from uvar_tune.orchestration.prepare import prepare
    from uvar_tune.orchestration.resources import remotely

    record = files.directory / "prepare.jsonl"
    with follower.following("prepare", record, config.tokenizer.images):
        return dataclasses.asdict(remotely(config, prepare, config, files.cache, record))
