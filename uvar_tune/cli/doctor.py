"""The command doctor: what this machine has and lacks."""

from __future__ import annotations

import os
import platform
import shutil
import sys

from uvar_tune.cli.options import Root, echo
from uvar_tune.errors import FAILED


def doctor(root: Root = None):
    """Check Python, packages, GPUs, Ray, storage, MLflow. Exit code 1 if one is unusable."""
    checks = {
        "Python": _python,
        "packages": _packages,
        "GPUs": _gpus,
        "Ray": _ray,
        "storage": lambda: _storage(root),
        "MLflow": lambda: _tracking(root),
    }
    all_usable = True
    for name, check in checks.items():
        try:
            usable, text = check()
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            usable, text = False, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        echo(f"{'ok ' if usable else 'BAD'}  {name:9} {text}")
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
