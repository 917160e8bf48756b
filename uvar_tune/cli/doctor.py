"""The command doctor: what this machine has and lacks."""

from __future__ import annotations

import fnmatch
import os
import platform
import shutil
import sys
from pathlib import Path

from uvar_tune.cli.options import Root, echo
from uvar_tune.errors import FAILED

_MAX_UPLOAD_BYTES = 100 * 2**20  # of Ray's dashboard, which answers 413 beyond it
_MAX_FILES = 100_000  # that are counted


def doctor(root: Root = None):
    """Check Python, packages, GPUs, Ray, storage, MLflow. Exit code 1 if one is unusable."""
    checks = {
        "Python": _python,
        "packages": _packages,
        "GPUs": _gpus,
        "Ray": _ray,
        "storage": lambda: _storage(root),
        "MLflow": lambda: _tracking(root),
        "job copy": lambda: _job_copy(Path.cwd()),
    }
    all_usable = True
    for name, check in checks.items():
        try:
            usable, text = check()
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            usable, text = False, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        echo(f"{'ok ' if usable else 'BAD'}  {name:8} {text}")
        all_usable = all_usable and usable
    return 0 if all_usable else FAILED


def _python() -> tuple[bool, str]:
    return sys.version_info >= (3, 10), f"{platform.python_version()} at {sys.executable}"


def _packages() -> tuple[bool, str]:
    from uvar_tune.provenance import versions

    return True, ", ".join(f"{name} {version}" for name, version in versions().items() if name != "python")


def _gpus() -> tuple[bool, str]:
    import torch

    count = torch.cuda.device_count()
    names = sorted({torch.cuda.get_device_name(i) for i in range(count)})
    return True, f"{count} ({', '.join(names)})" if count else "none: training runs on the CPU (gloo, fp32)"


def _ray() -> tuple[bool, str]:
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return True, "RAY_ADDRESS is not set: a study starts a local Ray"
    import socket

    host, _, port = address.removeprefix("http://").removeprefix("ray://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=5):
        return True, f"{address} answers"


def _storage(root: str | None) -> tuple[bool, str]:
    from uvar_tune.io.outputs import nearest_existing, unwritable_reason
    from uvar_tune.study_dir import resolve_root

    path = resolve_root(root)
    problem = unwritable_reason(path)
    if problem:
        return False, f"{path} {problem}"
    free = shutil.disk_usage(nearest_existing(path)).free
    return free > 0, f"{path}: {free / 2**30:.{0 if free >= 2**33 else 2}f} GiB free, writable"


def _tracking(root: str | None) -> tuple[bool, str]:
    import urllib.request

    from uvar_tune.study_dir import StudyDirectory, resolve_root

    uri = StudyDirectory(resolve_root(root), "doctor").tracking_uri()
    if not uri.startswith("http"):
        return True, f"{uri.rpartition('@')[2]} (no server needed)"
    with urllib.request.urlopen(uri.rstrip("/") + "/health", timeout=5) as answer:
        return answer.status == 200, f"{uri.rpartition('@')[2]} answers {answer.status}"


def _job_copy(directory: Path) -> tuple[bool, str]:
    """The size of what `ray job submit --working-dir .` uploads; not an error, because most commands need no job."""
    sizes = _upload_sizes(directory)
    total = sum(sizes.values())
    text = f"ray job submit --working-dir . uploads {total / 2**20:,.1f} MiB"
    if total <= _MAX_UPLOAD_BYTES:
        return True, text
    largest = sorted(sizes, key=sizes.get, reverse=True)[:3]
    shares = ", ".join(f"{name} {sizes[name] / 2**20:,.0f} MiB" for name in largest)
    return True, f"{text}, more than Ray takes ({_MAX_UPLOAD_BYTES >> 20}): {shares}; list them in .rayignore"


def _upload_sizes(directory: Path) -> dict[str, int]:
    """Top-level entry → bytes of its files that neither .gitignore nor .rayignore excludes (by plain patterns)."""
    patterns = []
    for name in (".gitignore", ".rayignore"):
        if (directory / name).is_file():
            lines = (directory / name).read_text(encoding="utf-8", errors="replace").splitlines()
            patterns += [line.strip() for line in lines if line.strip() and not line.startswith(("#", "!"))]
    sizes: dict[str, int] = {}
    count = 0
    for folder, folders, files in os.walk(directory):
        place = Path(folder).relative_to(directory)
        folders[:] = [name for name in folders if not _is_ignored(place / name, patterns)]
        for name in files:
            path, count = place / name, count + 1
            if not _is_ignored(path, patterns):
                sizes[path.parts[0]] = sizes.get(path.parts[0], 0) + (directory / path).lstat().st_size
        if count > _MAX_FILES:
            break
    return sizes


def _is_ignored(path: Path, patterns: list[str]) -> bool:
    for pattern in patterns:
        text = pattern.rstrip("/")
        if "/" in text:
            if fnmatch.fnmatch(path.as_posix(), text.lstrip("/")):
                return True
        elif fnmatch.fnmatch(path.name, text):
            return True
    return False
