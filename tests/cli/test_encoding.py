"""Terminals and locales without UTF-8: output degrades, files are UTF-8."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from tests.helpers.commands import TINY, environment
from uvar_tune.study_dir import StudyDirectory

LATIN = {"PYTHONIOENCODING": "latin-1"}
ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": ""}


def run(code: str, *arguments, **variables) -> subprocess.CompletedProcess:
    return subprocess.run(
        [
            sys.executable,
            *(["-c", code.encode("ascii", "backslashreplace").decode()] if code else ["-m", "uvar_tune"]),
            *map(str, arguments),
        ],
        capture_output=True,
        env=environment(**variables),
    )


@pytest.fixture
def space(tmp_path):
    tree = {**TINY, "study": {**TINY["study"], "question": "λ1 = λ2 → 0 … größer?"}}
    tree["run"] = {**TINY["run"], "root": str(tmp_path / "runs")}
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    return path


@pytest.mark.parametrize("variables", [LATIN, ASCII], ids=["latin-1", "ascii"])
def test_help_and_errors_degrade(variables, space):
    done = run("", "generate", "--help", **variables)
    assert done.returncode == 0 and b"t_k =" in done.stdout
    assert variables is ASCII or "cfg·(k/(K-1))^ramp".encode("latin-1") in done.stdout
    wrong = run("", "sweep", space, "study.trials=0", "study.question=λ", **variables)
    reason = b"set LC_ALL=C.UTF-8" if variables is ASCII else b"study.trials 0"
    assert wrong.returncode == 2 and reason in wrong.stderr and len(wrong.stderr.splitlines()) == 1
    searched = run("", "sweep", space, "loss.lambda_2=λ", **variables)
    assert searched.returncode == 2 and b"Traceback" not in searched.stderr


def test_study_files_are_utf_8(space, tmp_path):
    code = (
        "import sys\n"
        "from uvar_tune.config.loading import read_config\n"
        "from uvar_tune.study_dir import StudyDirectory, resolve_root\n"
        "from uvar_tune.trial.trial import write_config\n"
        "config = read_config(sys.argv[1])\n"
        "files = StudyDirectory(resolve_root(config.run.root), 'coded')\n"
        "files.create()\n"
        "files.create_or_verify(config)\n"
        "write_config(files.trial(0), config)\n"
        "assert files.load_config() == config\n"
    )
    done = run(code, space, **ASCII)
    assert not done.stderr and done.returncode == 0, done.stderr
    files = StudyDirectory(tmp_path / "runs", "coded")
    assert "größer" in files.config.read_text(encoding="utf-8")
    assert "größer" in (files.trial(0) / "config.yaml").read_text(encoding="utf-8")


def test_table_degrades(tmp_path):
    code = (
        "import sys\n"
        "from uvar_tune.cli.main import _SUBSTITUTE\n"
        "from rich.table import Table\n"
        "from uvar_tune.console import print_table\n"
        "sys.stdout.reconfigure(errors=_SUBSTITUTE)\n"
        "table = Table(title='λ1 → FID')\n"
        "table.add_column('λ1·2')\n"
        "table.add_row('−0.5 …')\n"
        "print_table(table)\n"
    )
    for variables in (LATIN, ASCII):
        done = run(code, **variables)
        assert done.returncode == 0, done.stderr
        assert b"lambda1 -> FID" in done.stdout and b"-0.5 ..." in done.stdout
