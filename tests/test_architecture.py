"""The dependency rule: a package imports only from layers below its own, and each library has one importer."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import uvar_tune

ROOT = Path(uvar_tune.__file__).parent
# From the top; a package may import from the rows below its own, and from itself.
LAYERS = (
    {"sweep", "export", "train", "report", "__main__"},
    {"cli", "api"},
    {"commands", "bench"},
    {"paper", "image_model"},
    {"ray_backend", "search", "reporting", "pipeline"},
    {"trial", "analysis"},
    {"evaluation"},
    {"training", "study_dir"},
    {"data", "console"},
    {"model", "objective", "tracking", "specs"},
    {"config"},
    {"io", "metrics"},
    {"errors", "seeds", "provenance"},
)
LIBRARIES = {
    "typer": {"cli"},
    "ray": {"ray_backend"},
    "optuna": {"search"},
    "optuna_dashboard": {"search"},
    "sqlalchemy": {"search"},
    "mlflow": {"tracking"},
    "torch_fidelity": {"evaluation.fidelity"},
    "matplotlib": {"reporting"},
    "plotly": {"reporting"},
}
MEASURING = {"bench"}  # benchmarks measure against the bare libraries
PLAIN = ("model", "data", "objective", "training", "evaluation", "trial")
MAX_FUNCTION_LINES, MAX_MODULE_LINES = 60, 600


def modules() -> dict[str, ast.Module]:
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): ast.parse(
            path.read_text("utf-8")
        )
        for path in sorted(ROOT.rglob("*.py"))
    }


def imported(tree: ast.Module) -> set[str]:
    """Every module named in an import statement, at whatever depth."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the whole path"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def layer_of(package: str) -> int | None:
    return next((index for index, row in enumerate(LAYERS) if package in row), None)


def layer_violations() -> list[str]:
    violations = set()
    for name, tree in modules().items():
        package = name.split(".")[0]
        if (layer := layer_of(package)) is None:
            continue
        for target in imported(tree):
            if not target.startswith("uvar_tune."):
                continue
            other = target.removeprefix("uvar_tune.").split(".")[0]
            other_layer = layer_of(other)
            if other_layer is not None and other != package and other_layer <= layer:
                violations.add(f"{name} imports {other}")
    return sorted(violations)


def test_packages_import_only_from_lower_layers():
    assert not layer_violations()


def test_every_package_has_a_layer():
    unknown = {name.split(".")[0] for name in modules()} - set().union(*LAYERS) - {"", "__init__"}
    assert not unknown


def test_each_library_has_one_importer():
    wrong = []
    for name, tree in modules().items():
        for target in imported(tree):
            importers = LIBRARIES.get(target.split(".")[0])
            allowed = (importers or set()) | MEASURING
            if importers and not any(name == place or name.startswith(place + ".") for place in allowed):
                wrong.append(f"{name} imports {target}")
    assert not wrong


def test_functions_and_modules_stay_short():
    long = []
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef):
                continue
            # the signature of a command lists its options, a few lines each
            first = node.body[0].lineno if name.startswith("cli.") else node.lineno
            if (count := node.end_lineno - first + 1) > MAX_FUNCTION_LINES:
                long.append(f"{name}.{node.name}: {count} lines")
    for path in ROOT.rglob("*.py"):
        if (count := len(path.read_text("utf-8").splitlines())) > MAX_MODULE_LINES:
            long.append(f"{path.relative_to(ROOT)}: {count} lines")
    assert not long


def test_plain_packages_need_no_orchestration():
    """In a process in which these cannot be imported at all."""
    code = (
        "import importlib, sys\n"
        "for name in ('ray', 'mlflow', 'optuna', 'torch_fidelity', 'matplotlib'): sys.modules[name] = None\n"
        f"for package in {PLAIN}: importlib.import_module(f'uvar_tune.{{package}}')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent)
