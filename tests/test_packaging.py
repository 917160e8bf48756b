"""pyproject.toml: dependencies are declared, named with their users and bounded."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from importlib import metadata

import pytest

from tests.helpers.commands import REPOSITORY
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
