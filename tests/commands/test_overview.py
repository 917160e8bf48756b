"""`uvar-tune list` and `uvar-tune show`: states, best values, one trial, JSON."""

from __future__ import annotations

import json

import pytest

from tests.helpers.search_cases import details, scored, study_config
from uvar_tune.cli.main import main
from uvar_tune.search.storage import verify_directory_owner
from uvar_tune.search.study import Search
from uvar_tune.study_dir import StudyDirectory
from uvar_tune.trial.trial import write_config


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """done: two of two trials; begun: one of two, whose sweep was killed; a final run, which is not a study."""
    root = tmp_path_factory.mktemp("runs")
    for name, ended in (("done", 2), ("begun", 1)):
        config, files = study_config(name, trials=2), StudyDirectory(root, name)
        files.create()
        files.create_or_verify(config)
        search = Search(config, files.storage_url(config))
        verify_directory_owner(search.storage, name, files.directory)
        for number in range(2):
            proposal = search.ask()
            write_config(files.trial(number), config.with_values(proposal.values))
            if number < ended:
                search.complete(number, scored(5.0 - number, details(fid=5.0 - number)))
    (root / "done" / "trials" / "00001" / "checkpoints" / "64").mkdir(parents=True)
    final = StudyDirectory(root, "done-final")
    final.create()
    final.create_or_verify(study_config("done"))
    return root


def output(capsys, *arguments) -> str:
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def test_list_shows_state_progress_and_best(root, capsys):
    lines = output(capsys, "list", "--root", root).splitlines()
    assert lines[0].split() == ["study", "state", "trials", "metric", "best", "age"]
    assert [line.split()[:7] for line in sorted(lines[1:])] == [
        ["begun", "incomplete", "1/2", "fid", "5", "(trial", "0)"],
        ["done", "complete", "2/2", "fid", "4", "(trial", "1)"],
    ]
    with StudyDirectory(root, "begun").lock():
        rows = {row["name"]: row for row in json.loads(output(capsys, "list", "--root", root, "--json"))}
    assert (rows["begun"]["state"], rows["done"]["state"]) == ("running", "complete")
    assert rows["done"]["best"] == 4.0 and 0 <= rows["done"]["age_sec"] < 600


def test_list_names_an_unreadable_study(root, capsys, monkeypatch):
    monkeypatch.setenv("UVAR_STORAGE", f"journal:{root / 'elsewhere'}")
    text = output(capsys, "list", "--root", root)
    assert text.count("unreadable") == 2 and "done: run.storage: " in text


def test_show_prints_table_or_trial(root, capsys):
    assert "done: FID" in output(capsys, "show", "done", "--root", root)
    text = output(capsys, "show", "done", "--trial", "1", "--root", root)
    assert (
        "state: COMPLETE" in text
        and "outcome: complete" in text
        and "  fid: 4.0" in text
        and "  loss.lambda_1: " in text
    )
    assert "checkpoints/64" in text and "config.yaml" in text
    trials = json.loads(output(capsys, "show", "done", "--root", root, "--json"))["trials"]
    assert [(trial["rank"], trial["trial"], trial["attempts"]) for trial in trials] == [(1, 1, 1), (2, 0, 1)]


def test_show_refuses_unknown_trials(root, capsys):
    assert main(["show", "done", "--trial", "7", "--root", str(root)]) == 2
    assert "--trial: study 'done' has no trial 7" in capsys.readouterr().err
    assert main(["show", "doen", "--root", str(root)]) == 2
    assert "did you mean 'done'" in capsys.readouterr().err
