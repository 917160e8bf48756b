"""Where people look at a study: MLflow's page, and the command lines that open pages."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from uvar_tune.study_dir import StudyDirectory, resolve_root
from uvar_tune.tracking import Outbox
from uvar_tune.tracking.saved_view import view_url


def mlflow_page(files: StudyDirectory) -> str:
    """The link to the ranked trials of a study on its MLflow server, or the command that opens them."""
    uri = files.tracking_uri()
    page = view_url(uri, Outbox(files.directory / "mlflow"))
    if page and uri.startswith(("http://", "https://")):
        return page
    root = [] if files.root == resolve_root(None) else ["--root", files.root]
    return command_line(python(), "-m", "uvar_tune", "ui", files.name, *root)


def command_line(*arguments: str | Path) -> str:
    """A command line for a POSIX shell."""
    return shlex.join(map(str, arguments))


def python() -> str:
    """The path of this interpreter, relative to the current directory if it is below it."""
    try:
        return str(Path(sys.executable).relative_to(os.getcwd()))
    except ValueError:
        return sys.executable
