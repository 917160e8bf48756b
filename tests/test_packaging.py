"""pyproject.toml: dependencies are declared, named with their users and bounded."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import pytest

from tests.helpers.commands import REPOSITORY, environment
from tests.test_architecture import imported, modules

tomllib = pytest.importorskip("tomllib")
TEXT = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
PROJECT = tomllib.loads(TEXT)["project"]
REQUIRED = {re.match(r"[\w.-]+", requirement)[0]: requirement for requirement in PROJECT["dependencies"]}


def test_every_import_is_declared():
    distributions = metadata.packages_distributions()
    names = {name.split(".")[0] for tree in modules().values() for name in imported(tree)}
    foreign = names - sys.stdlib_module_names - {"uvar_tune"}
    installed = {name: distributions[name] for name in foreign if name in distributions}
    missing = {
        name
        for name, owners in installed.items()
        if not {owner.lower().replace("_", "-") for owner in owners} & set(REQUIRED)
    }
    assert not missing


def test_every_dependency_names_its_user():
    lines = re.findall(r'^    "([\w.-]+)[^"]*",\s+# ([\w.]+)', TEXT, re.MULTILINE)
    assert {name for name, _ in lines} >= set(REQUIRED) - {"optuna-dashboard"}
    for name, user in lines:
        if name in REQUIRED and name != "optuna-dashboard":
            module = importlib.util.find_spec(f"uvar_tune.{user.rstrip('.')}")
            assert module, f"{name}: {user}"


def test_packages_with_private_use_are_bounded():
    for name in ("ray", "optuna", "mlflow"):
        low, high = re.search(r">=(\d+)[\d.]*,<(\d+)$", REQUIRED[name]).groups()
        assert int(high) == int(low) + 1 == int(metadata.version(name).split(".")[0]) + 1


def test_console_script_is_the_module():
    module, _, function = PROJECT["scripts"]["uvar-tune"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_wheel_brings_the_search_spaces(tmp_path):
    """Installed in an environment of its own, the command finds the shipped spaces from an empty directory."""
    source = tmp_path / "source"
    skipped = shutil.ignore_patterns(".*", "runs", "build", "dist", "*.egg-info", "reports", "__pycache__")
    shutil.copytree(REPOSITORY, source, ignore=skipped)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)])
    wheel = next(tmp_path.glob("*.whl"))
    run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "env")])
    python = tmp_path / "env" / "bin" / "python"
    site = Path(run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip())
    # the other packages are shared; this entry, unlike a site directory, ignores the checkout's editable installation
    (site / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    run([*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)])
    empty = tmp_path / "empty"
    empty.mkdir()
    shown = run(
        [str(python.with_name("uvar-tune")), "sweep", "search_spaces/digits_confirm.yaml", "--dry-run"], cwd=empty
    )
    assert "study 'digits_confirm' below" in shown and list(empty.iterdir()) == []


def run(command: list[str], cwd: Path | None = None) -> str:
    variables = {key: value for key, value in environment().items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
