"""A study from its configuration to its exported best: checked, claimed, run. The same call resumes."""

from __future__ import annotations

from uvar_tune.config import Config
from uvar_tune.orchestration.checks import check_study, steps_of
from uvar_tune.study.files import StudyFiles, resolve_root
from uvar_tune.study.room import room_needed


def run_study(config: Config, say, *, phase: str | None = None) -> int:
    """Run what is missing of the study, or of one phase (`all` for each in turn).

    Returns:
        0 when the work has ended and at least one trial has a score; 1 failed; 130 interrupted.
    """
    steps = steps_of(phase)
    check_study(config, steps)
    files = StudyFiles(resolve_root(config.run.root), config.study.name)
    files.prepare()
    with files.lock(), room_needed(files.directory):
        files.claim(config)
        say(f"study {files.name!r} in {files.directory}")
        from uvar_tune.orchestration.study_work import work_on  # PyTorch comes with it

        return work_on(config, files, steps, say)
