"""Mistakes on the command line, door by door: one line with the option, the value and the nearest choice; exit code 2."""

from __future__ import annotations

import importlib
import sys

import pytest

from uvar_tune.bench.__main__ import main
from uvar_tune.cli.common import run

CASES = {
    "sweep --trials 1e3": "--trials: '1e3' should be a valid integer, unable to parse string as an integer; did you mean '1000'?",
    "generate x --out a.png --label cat": "--label: 'cat' should be a valid integer, unable to parse string as an integer",
    "generate x --out a.png --count 0": "--count: '0' should be greater than or equal to 1; did you mean '1'?",
    "generate x --out a.png --count 100000000": "--count: '100000000' should be less than or equal to 10000; did you mean '10000'?",
    "generate x --out a.png --cfg-scale 1e308": "--cfg-scale: '1e308' should be less than or equal to 100; did you mean '100'?",
    "edit inpaint x y --out a.png --temperature 1e-300": "--temperature: '1e-300' should be greater than or equal to 0.0001; "
    "did you mean '0.0001'?",
    "evaluate x --suite table2 --samples 4": "--samples: '4' should be greater than or equal to 16; did you mean '16'?",
    "evaluate x --suite table2 --cfg-scale inf": "--cfg-scale: 'inf' should be less than or equal to 100; did you mean '100'?",
    "evaluate x --suite table2 --cfg-scale nan": "--cfg-scale: 'nan' should be ",
    "export --study x --trial 3 --trial 4": "--trial: given 2 times: it takes one value",
    "sync --study ../x --rebuild --rebuild": "--study: '../x' is no name of a study",
    "report --study a --study b --root /dev/null/x": "--study: no study 'a' below /dev/null/x",
    "sweep --training.images=100": "No such option: --training.images: settings are given as key=value, without dashes; "
    "did you mean 'training.images=100'?",
    "sweep --training.images 100": "No such option: --training.images: settings are given as key=value, without dashes; "
    "did you mean 'training.images=100'?",
    "train x.yaml --set run.workers=2": "No such option: --set: settings are given as key=value, without dashes; "
    "did you mean 'run.workers=2'?",
    "sweep --trails 3": "No such option: --trails (Possible options: --trials)",
    "report --stud.y=1": "No such option: --stud.y",
}


@pytest.mark.parametrize("line", CASES)
def test_one_line_that_names_the_value(line, capsys, monkeypatch):
    name, *arguments = line.split()
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with pytest.raises(SystemExit) as end:
        run(getattr(importlib.import_module(f"uvar_tune.{name}"), name))
    said = capsys.readouterr()
    assert end.value.code == 2 and not said.out
    assert said.err.startswith(f"error: {CASES[line]}") and len(said.err.splitlines()) == 1


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
def test_the_benchmarks_say_it_alike(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.startswith("error: ") and message in said and len(said.splitlines()) == 1
