"""The arrows of the house: who may import whom, and behind which single door each library lives."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import uvar_tune

ROOT = Path(uvar_tune.__file__).parent
BASE = {"errors", "seeds", "provenance", "tracking.registry"}
CONFIG = {"config", "config_file", "config_errors", "space", "space_entry"}
# room → what it may import of the package, besides BASE and itself
ARROWS = {
    "model": set(),
    "data": {"model"},
    "objective": set(),
    "training": {"model", "data", "objective"},
    "evaluation": {"model", "data", "objective", "training"},
    "tracking": set(),
    "study": {*CONFIG, "tracking"},
    "reporting": {"study", "tracking"},
    "orchestration": {
        *CONFIG,
        "model",
        "data",
        "objective",
        "training",
        "evaluation",
        "tracking",
        "study",
        "reporting",
    },
}
PLAIN = ("model", "data", "objective", "training", "evaluation")
LIBRARIES = {
    "ray": {"orchestration"},
    "optuna": {"study"},
    "mlflow": {"tracking.sink"},
    "torch_fidelity": {"evaluation.fidelity"},
    "matplotlib": {"reporting"},
    "plotly": {"reporting"},
    "pydantic": CONFIG,
}
MAY_LOOK = {
    "ray": {"bench", "doctor"},
    "optuna": {"bench"},
    "mlflow": {"bench"},
}  # benchmarks measure against the bare libraries


def modules() -> dict[str, ast.Module]:
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): ast.parse(path.read_text())
        for path in sorted(ROOT.rglob("*.py"))
    }


def imported(tree: ast.Module) -> set[str]:
    """Every module named in an import statement, at whatever depth it stands."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the whole path"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def within(name: str, places: set[str]) -> bool:
    return any(name == place or name.startswith(place + ".") for place in places)


def test_arrows_point_one_way():
    wrong = []
    for name, tree in modules().items():
        room = name.split(".")[0]
        if room not in ARROWS:
            continue
        allowed = ARROWS[room] | BASE | {room}
        for target in imported(tree):
            inner = target.removeprefix("uvar_tune.")
            if target.startswith("uvar_tune.") and not within(inner, allowed):
                if not (room == "tracking" and within(inner, {"tracking"})):
                    wrong.append(f"{name} imports {inner}")
    assert not wrong, wrong


def test_each_library_lives_behind_one_door():
    wrong = []
    for name, tree in modules().items():
        for target in imported(tree):
            library = target.split(".")[0]
            cli = LIBRARIES.get(library)
            if cli and not within(name, cli | MAY_LOOK.get(library, set())):
                wrong.append(f"{name} imports {library}")
    assert not wrong, wrong


def test_files_stay_short():
    long = {
        str(path.relative_to(ROOT)): count
        for path in ROOT.rglob("*.py")
        if (count := len(path.read_text().splitlines())) > 350
    }
    assert not long, long


def test_plain_rooms_run_without_ray_mlflow_and_optuna():
    """In a process in which these cannot be imported at all."""
    code = (
        "import importlib, sys\n"
        "for name in ('ray', 'mlflow', 'optuna', 'pydantic', 'torch_fidelity', 'matplotlib'): sys.modules[name] = None\n"
        f"for room in {PLAIN}: importlib.import_module(f'uvar_tune.{{room}}')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent)


@pytest.mark.parametrize(
    "door", ["sweep", "train", "export", "report", "generate", "doctor", "sync", "evaluate", "tokenizer", "edit"]
)
def test_help_imports_nothing_heavy(door):
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['{door}', '--help']\n"
        "try:\n"
        f"    runpy.run_module('uvar_tune.{door}', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "heavy = {'torch', 'ray', 'optuna', 'mlflow', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent, capture_output=True, text=True)
    assert "Usage" in done.stdout
