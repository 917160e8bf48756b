"""Paths in a configuration become absolute where it is read, because workers run in directories of their own.

A relative path is relative to the working directory, in a file as on the command line; ``~`` and ``$VARIABLE`` are
expanded. The working directory of a submitted Ray job is a temporary copy: a relative path must exist in it, and where
results are written must be absolute.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from uvar_tune.errors import ConfigError

INPUT_PATHS = ("data.path", "tokenizer.path", "training.init_from", "evaluation.weights")
_OUTPUT_PATHS = ("run.root", "run.scratch", "run.storage")
_STORAGE_FILE = re.compile(r"(journal:|sqlite:///)(?!file:)([^?]*)(.*)", re.DOTALL)
_JOB_COPY = re.compile(r".*/working_dir_files/_ray_pkg_[^/]+/")


def absolute_paths(tree: dict[str, Any]) -> dict[str, Any]:
    """The configuration with absolute paths; settings that are not text are left to the validation.

    Raises:
        ConfigError: a variable that is not set; in a Ray job, a relative path that does not exist or would be written.
    """
    result = dict(tree)
    for name in (*INPUT_PATHS, *_OUTPUT_PATHS):
        section, key = name.split(".")
        settings = result.get(section)
        if isinstance(settings, dict) and isinstance(settings.get(key), str) and settings[key]:
            result[section] = {**settings, key: _absolute(name, settings[key])}
    return result


def same_path(old: str, new: str) -> bool:
    """Whether two absolute paths may name the same input: equal, the same file, or moved along with its project.

    A path counts as moved if the old one no longer exists and the last component is the same. Copies of the working
    directory of two Ray jobs count as one directory.
    """
    old, new = _JOB_COPY.sub("", old), _JOB_COPY.sub("", new)
    if old == new:
        return True
    if os.path.exists(old):
        return os.path.exists(new) and os.path.samefile(old, new)
    return Path(old).name == Path(new).name


def in_ray_job() -> bool:
    """Whether this process is the entry point of a submitted Ray job."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def _absolute(name: str, value: str) -> str:
    if name == "run.storage":
        match = _STORAGE_FILE.fullmatch(value)
        if match is None or not match[2] or match[2] == ":memory:":
            return value
        return match[1] + _absolute_path(name, match[2]) + match[3]
    if "://" in value:  # refused where it is used, with a hint
        return value
    return _absolute_path(name, value)


def _absolute_path(name: str, value: str) -> str:
    path = os.path.expanduser(os.path.expandvars(value))
    if missing := re.search(r"\$(\w+|\{\w+\})", path):
        raise ConfigError(f"{name} {value!r}: the variable {missing[0]} is not set")
    if os.path.isabs(path) or not in_ray_job():
        return os.path.abspath(path)
    if name in _OUTPUT_PATHS:
        raise ConfigError(
            f"{name} {value!r} is relative, and a Ray job runs in a temporary copy: give an absolute path",
            nearest=f"~/{value}",
        )
    if not os.path.exists(path):
        raise ConfigError(
            f"{name} {value!r} is relative, and the working directory of this Ray job does not hold it: give an "
            "absolute path"
        )
    return os.path.abspath(path)
