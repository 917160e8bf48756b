"""What this machine has and lacks, a line each: ``python -m uvar_tune.doctor``."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from typing import Annotated

import typer

from uvar_tune.cli.common import echo, run
from uvar_tune.errors import FAILED


def doctor(root: Annotated[str | None, typer.Option(help="Where studies lie (run.root; default: runs).")] = None):
    """One line each for Python, packages, GPUs, Ray, storage and the tracking server; exit code 1 if one is unusable."""
    checks = {
        "Python": _python,
        "packages": _packages,
        "GPUs": _gpus,
        "Ray": _ray,
        "storage": lambda: _storage(root),
        "MLflow": lambda: _tracking(root),
    }
    good = True
    for name, check in checks.items():
        try:
            fine, text = check()
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            fine, text = False, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        echo(f"{'ok ' if fine else 'BAD'}  {name:9} {text}")
        good = good and fine
    return 0 if good else FAILED


def _python():
    return sys.version_info >= (3, 10), f"{platform.python_version()} at {sys.executable}"


def _packages():
    from uvar_tune.provenance import versions

    return True, ", ".join(f"{name} {version}" for name, version in versions().items() if name != "python")


def _gpus():
    import torch

    count = torch.cuda.device_count()
    names = sorted({torch.cuda.get_device_name(i) for i in range(count)})
    return True, f"{count} ({', '.join(names)})" if count else "none: training runs on the CPU (gloo, fp32)"


def _ray():
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return True, "RAY_ADDRESS is not set: a study starts a Ray of its own"
    import socket

    host, _, port = address.removeprefix("http://").removeprefix("ray://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=5):
        return True, f"{address} answers"


def _storage(root):
    from uvar_tune.io.outputs import existing, unwritable
    from uvar_tune.study_dir import resolve_root

    path = resolve_root(root)
    trouble = unwritable(path)
    if trouble:
        return False, f"{path} {trouble}"
    free = shutil.disk_usage(existing(path)).free
    return free > 0, f"{path}: {free / 2**30:.{0 if free >= 2**33 else 2}f} GiB free, writable"


def _tracking(root):
    import urllib.request

    from uvar_tune.study_dir import StudyDirectory, resolve_root

    uri = StudyDirectory(resolve_root(root), "doctor").tracking_uri()
    if not uri.startswith("http"):
        return True, f"{uri.rpartition('@')[2]} (no server needed)"
    with urllib.request.urlopen(uri.rstrip("/") + "/health", timeout=5) as answer:
        return answer.status == 200, f"{uri.rpartition('@')[2]} answers {answer.status}"


if __name__ == "__main__":
    run(doctor)
