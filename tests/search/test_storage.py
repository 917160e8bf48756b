"""The storage file itself: read while it is written, torn at its end, or not to be opened at all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.search_cases import details, run_to_end, scored, study_config
from uvar_tune.errors import ConfigError
from uvar_tune.search.storage import open_storage
from uvar_tune.search.study import Search

READER = """
import json, sys
from uvar_tune.search.storage import open_storage
storage, seen = open_storage(sys.argv[1]), []
print("reading", flush=True)
while not seen or seen[-1] < 12:
    study, = storage.get_all_studies()
    seen.append(sum(trial.state.is_finished() for trial in storage.get_all_trials(study._study_id, deepcopy=False)))
print(json.dumps([len(seen), seen == sorted(seen), seen[-1]]))
"""


def test_a_journal_is_read_while_it_is_written(journal):
    search = Search(study_config(trials=12), journal)
    with subprocess.Popen([sys.executable, "-c", READER, journal], stdout=subprocess.PIPE, text=True) as reader:
        try:
            assert reader.stdout.readline() == "reading\n"
            run_to_end(search)
            looked, grew, last = json.loads(reader.communicate(timeout=60)[0])
        finally:
            reader.kill()
    assert looked > 1 and grew and last == 12 and reader.returncode == 0


@pytest.mark.parametrize("left", [1, 40])
def test_torn_last_line_is_dropped(journal, left):
    search = Search(study_config(trials=5), journal)
    for _ in range(3):
        search.ask()
    search.complete(1, scored(3.0, details(fid=3.0)))
    path = journal.removeprefix("journal:")
    with open(path, "rb+") as file:
        file.truncate(file.seek(0, 2) - left)
    resumed = Search(study_config(trials=5), journal)
    assert resumed.unfinished() == [0, 1, 2]  # the torn line was the end of trial 1
    run_to_end(resumed)
    assert Search(study_config(trials=5), journal).done()


@pytest.mark.parametrize(
    "damage", [lambda lines: [*lines, b"\n"], lambda lines: [*lines[:-1], lines[-1][:-1] + lines[-1]]]
)
def test_damaged_line_is_named(journal, damage):
    Search(study_config(trials=2), journal).ask()
    path = Path(journal.removeprefix("journal:"))
    lines = damage(path.read_bytes().splitlines(keepends=True))
    path.write_bytes(b"".join(lines))
    with pytest.raises(ConfigError, match=f"run.storage: line {len(lines)} of {path} is damaged"):
        Search(study_config(trials=2), journal)


def test_a_whole_journal_is_left_as_it_is(journal):
    run_to_end(Search(study_config(trials=2), journal))
    path = journal.removeprefix("journal:")
    with open(path, "rb") as file:
        before = file.read()
    open_storage(journal)
    with open(path, "rb") as file:
        assert file.read() == before


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:////nowhere/at/all.db",
        "postgresql://user:secret@127.0.0.1:9/none",
        "oracle://x",
        "nonsense",
        "journal:/nowhere/at/all",
    ],
)
def test_a_storage_that_cannot_be_opened_is_bad_input(url):
    with pytest.raises(ConfigError) as caught:
        open_storage(url)
    assert caught.value.where == "run.storage" and "secret" not in str(caught.value)
