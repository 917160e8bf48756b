"""Retired words stay retired: in code, tests, documentation, space files and deployment files."""

from __future__ import annotations

import re

from tests.helpers.commands import REPOSITORY

PLACES = (
    "uvar_tune",
    "tests",
    "docs",
    "search_spaces",
    "cluster",
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "Makefile",
)
SUFFIXES = {".py", ".md", ".yaml", ".yml", ".sbatch", ".toml", ".txt", ""}
RETIRED = (
    *("door", "doors", "house", "hands", "told", "tell", "tells", "retell", "sink", "sinks", "courier", "spool"),
    *("patience", "patient", "patiently", "insist", "insists", "judge", "judges", "judged", "warm", "anew", "beside"),
    *("flattered", "mends", "mend", "forgotten", "foretold", "stop word", "stands beside", "stands", "suite", "suites"),
    *("lies in", "lie in", "lay in", "author", "the blow", "unsaid", "stop_word", "courier", "retells"),
)
# Legitimate uses, by the word and what has to surround it in the line.
EXCEPTIONS = {
    "tell": r"\.tell\b|Optuna|\btell=|ask and tell|ask to tell|def tell|`tell`",  # of studies, and of searches like them
    "told": r"Optuna",
    "warm": r"[Ww]arm[- _]?([Uu]p|UP|start|ed)|stays warm",  # warm-up steps, warm start of a search
    "author": r"[Aa]uthors?(_email|:| of| =|s')",  # of a file or a paper
    "suite": r"test suite",
    "suites": r"test suites",
    "patient": r"patients?\b.*(data|image)",
    "hands": r"hands? over|hands-on",
}
PATTERN = re.compile(
    rf"(?<![\w-])({'|'.join(map(re.escape, sorted(RETIRED, key=len, reverse=True)))})(?![\w-])", re.IGNORECASE
)


def files():
    for place in PLACES:
        path = REPOSITORY / place
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file() and file.suffix in SUFFIXES and file.name != "test_vocabulary.py":
                yield file


def retired_words() -> list[str]:
    """A line for each use that no exception covers: file, line, word."""
    uses = []
    for file in files():
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(lines, 1):
            for word in PATTERN.findall(line.replace("_", " ")):
                exception = EXCEPTIONS.get(word.lower())
                if exception is None or not re.search(exception, line):
                    uses.append(f"{file.relative_to(REPOSITORY)}:{number}: {word}")
    return uses


def test_pattern_matches_whole_words():
    assert PATTERN.findall("The door stands beside a window; Told anew, forewarmed outdoors.") == [
        "door",
        "stands beside",
        "Told",
        "anew",
    ]


def test_no_retired_word_is_left():
    uses = retired_words()
    assert not uses, f"{len(uses)} uses, the first: {uses[:20]}"
