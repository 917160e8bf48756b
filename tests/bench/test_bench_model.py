"""The bench of the model: every part is there, the parts add up, options reach it, the official side where a checkout is."""

from __future__ import annotations

import json
import os

import pytest

from uvar_tune.bench.__main__ import main
from uvar_tune.bench.model import PARTS, SMALL, WHOLE, WORK, _peak_mib, run

CHECKOUT = os.environ.get("UVAR_OFFICIAL_VAR")


def check(rows: list[dict], names: list[str]) -> None:
    assert [row["part"] for row in rows] == [*PARTS, "forward + backward", *(f"memory, {work}" for work in WORK)]
    by_part = {row["part"]: row for row in rows}
    for part in PARTS:
        for name in names:
            assert 0 < by_part[part][f"{name}_cpu_sec"] <= by_part[WHOLE.get(part, part)][f"{name}_cpu_sec"] + 1e-3
        assert 0 < by_part[part]["share"] <= 1.001
    for work in WORK:
        assert all(100 < by_part[f"memory, {work}"][f"{name}_peak_mib"] < 5000 for name in names)
    assert all(row["threads"] == 1 and row["length"] == 5 and "load" in row and "machine" in row for row in rows)
    json.dumps(rows, allow_nan=False)


def test_the_small_bench_of_our_side(capsys):
    assert main(["model", "--small", "--repeats", "1", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    check(rows, ["ours"])
    assert not any("ratio" in row for row in rows)


def test_memory_is_that_of_the_work():
    wide = {**SMALL, "batch": 24, "scales": (1, 2, 4)}
    assert _peak_mib("ours", "sampling", wide, None) > _peak_mib("ours", "sampling", SMALL, None) + 8


@pytest.mark.skipif(not CHECKOUT, reason="UVAR_OFFICIAL_VAR does not name a checkout of FoundationVision/VAR")
def test_the_small_bench_of_both_sides():
    rows = run(small=True, repeats=1, official=CHECKOUT)
    check(rows, ["ours", "official"])
    for row in rows:
        ours, theirs = (row.get(f"{name}_cpu_sec", row.get(f"{name}_peak_mib")) for name in ("ours", "official"))
        assert row["ratio"] == pytest.approx(theirs / ours, rel=0.3)


def test_options_are_those_of_the_benchmark(capsys, tmp_path):
    assert main(["model", "--small", "--official", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"--official {tmp_path}: is not a checkout of FoundationVision/VAR" in line
    assert main(["search", "--small", "--table", str(tmp_path / "none.json")]) == 2
    assert "none.json: cannot be read" in capsys.readouterr().err
    for wrong in (["study", "--official", "x"], ["model", "--offical", "x"], ["modell"], ["model", "--repeats", "0"]):
        with pytest.raises(SystemExit) as end:
            main(wrong)
        assert end.value.code == 2
