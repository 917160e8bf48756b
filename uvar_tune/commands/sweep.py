"""A study from its configuration to its exported best: checked, claimed, run. The same call resumes."""

from __future__ import annotations

import logging

from uvar_tune.commands.checks import check_study, phases_of
from uvar_tune.config.schema import Config
from uvar_tune.io.disk import raise_on_disk_full
from uvar_tune.study_dir import StudyDirectory, resolve_root

logger = logging.getLogger(__name__)


def run_study(config: Config, *, phase: str | None = None) -> int:
    """Run what is missing of the study, or of one phase (`all` for each in turn).

    Returns:
        0 when the work has ended and at least one trial has a score; 1 failed; 130 interrupted.
    """
    steps = phases_of(phase)
    check_study(config, steps)
    files = StudyDirectory(resolve_root(config.run.root), config.study.name)
    files.prepare()
    with files.lock(), raise_on_disk_full(files.directory):
        files.claim(config)
        logger.info(f"study {files.name!r} in {files.directory}")
        from uvar_tune.commands.session import work_on  # PyTorch comes with it

        return work_on(config, files, steps)
