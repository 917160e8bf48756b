"""Provenance of a number: commit, source hash, package versions, machine."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from importlib import metadata
from pathlib import Path

_PACKAGES = ("torch", "torchvision", "ray", "optuna", "mlflow", "torch-fidelity", "numpy", "scipy", "scikit-learn")


def source_hash() -> str:
    """Hash of the source files of this package, 16 hex digits."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def commit() -> str | None:
    """The commit of the checkout that holds this package, with `-dirty` if it is modified; None outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        described = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return None
    return described.stdout.strip() or None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that affect numbers."""
    result = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            result[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return result


def origin() -> dict:
    """Commit, source hash, versions and machine, for exports and tracked runs."""
    return {
        "commit": commit(),
        "source": source_hash(),
        "versions": versions(),
        "machine": f"{platform.system()} {platform.machine()}",
    }
