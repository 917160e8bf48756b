"""The application: help, usage errors in one line, exit codes, completion."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.helpers.commands import environment
from uvar_tune.bench.__main__ import main as run_benchmark
from uvar_tune.cli.main import COMMANDS, main

TABLE2 = "evaluate x --tables table2"
CASES = {
    "sweep --trials 1e3": "--trials: '1e3' should be a valid integer, unable to parse string as an integer; did you mean '1000'?",
    "generate x --out a.png --count 0": "--count: '0' should be greater than or equal to 1; did you mean '1'?",
    "generate x --out a.png --count 100000000": "--count: '100000000' should be less than or equal to 10000; did you mean '10000'?",
    "generate x --out a.png --cfg-scale 1e308": "--cfg-scale: '1e308' should be less than or equal to 100; did you mean '100'?",
    "edit inpaint x y --out a.png --temperature 1e-300": "--temperature: '1e-300' should be greater than or equal to 0.0001; "
    "did you mean '0.0001'?",
    f"{TABLE2} --samples 4": "--samples: '4' should be greater than or equal to 16; did you mean '16'?",
    f"{TABLE2} --cfg-scale inf": "--cfg-scale: 'inf' should be less than or equal to 100; did you mean '100'?",
    f"{TABLE2} --cfg-scale nan": "--cfg-scale: 'nan' should be ",
    "export --study x --trial 3 --trial 4": "--trial: given 2 times: it takes one value",
    "sync --study ../x --rebuild --rebuild": "--study: '../x' is no name of a study",
    "report --study a --study b --root /dev/null/x": "--study: no study 'a' below /dev/null/x",
    "show a --root /dev/null/x": "--study: no study 'a' below /dev/null/x",
    "sweep --training.images=100": "No such option: --training.images: settings are given as key=value, without dashes; "
    "did you mean 'training.images=100'?",
    "sweep --training.images 100": "No such option: --training.images: settings are given as key=value, without dashes; "
    "did you mean 'training.images=100'?",
    "train x.yaml --set run.workers=2": "No such option: --set: settings are given as key=value, without dashes; "
    "did you mean 'run.workers=2'?",
    "sweep --trails 3": "No such option: --trails (Possible options: --trials)",
    "report --stud.y=1": "No such option: --stud.y",
    "swep": "No such command 'swep'. Did you mean 'sweep'?",
    "bench losss": "unknown benchmark 'losss' (one of: data, loss,",
}


def exit_code(*arguments: str) -> int:
    """Of `main`, or of the `SystemExit` that argparse raises."""
    try:
        return main(list(arguments))
    except SystemExit as end:
        return end.code


@pytest.mark.parametrize("line", CASES)
def test_usage_error_is_one_line(line, capsys):
    assert exit_code(*line.split()) == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert captured.err.startswith("error: ") and CASES[line] in captured.err
    assert len(captured.err.splitlines()) == 1


@pytest.mark.parametrize("command", [*COMMANDS, "bench"])
def test_help_at_80_columns_cuts_no_word(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    assert exit_code(command, "--help") == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert command == "bench" or "…" not in text.replace(", …", "")
    for word in re.findall(r"--[a-z-]+", text):
        assert not word.endswith("-"), word
    for option in re.findall(r"(?m)^  (?:-h, )?(--[a-z-]+)", text):
        assert option in OPTIONS.get(command, ()) or option == "--help" or command == "bench", option


OPTIONS = {
    name: {f"--{key.replace('_', '-')}" for key in function.__annotations__} | {"--json"}
    for name, function in COMMANDS.items()
}


def test_help_lists_every_command(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert exit_code() == 2  # a command is missing
    text = capsys.readouterr().out
    assert all(re.search(rf"(?m)^  {command}  +[A-Z].*\.$", text) for command in [*COMMANDS, "bench"])


@pytest.mark.parametrize(
    "module", [*COMMANDS, "uvar_tune.sweep", "uvar_tune.export", "uvar_tune.train", "uvar_tune.report"]
)
def test_help_imports_nothing_heavy(module):
    run = f"runpy.run_module({module!r}, run_name='__main__')" if "." in module else "main()"
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['x', *{[] if '.' in module else [module]}, '--help']\n"
        "from uvar_tune.cli.main import main\n"
        "try:\n"
        f"    {run}\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "heavy = {'torch', 'ray', 'optuna', 'mlflow', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, env=environment(), capture_output=True, text=True)
    assert f"Usage: uvar-tune {module.removeprefix('uvar_tune.')} " in done.stdout


def test_version(capsys):
    assert exit_code("--version") == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_shell_completes_commands():
    request = {"_UVAR_TUNE_COMPLETE": "complete_bash", "COMP_WORDS": "uvar-tune s", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "uvar_tune"], env=environment(**request), capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["sweep", "show", "sync"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["losss"], "unknown benchmark 'losss' (one of: data, loss,"),
        (["losss"], "did you mean 'loss'?"),
        ([], "is missing (one of: data,"),
        (["--json"], "is missing"),
        (["loss", "--bogus"], "--bogus"),
        (["loss", "--repeats", "0"], "--repeats 0: at least 1"),
        (["loss", "--repeats", "x"], "invalid int value: 'x'"),
    ],
)
def test_bench_usage_error_is_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        run_benchmark(arguments)
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.startswith("error: ") and message in error and len(error.splitlines()) == 1
