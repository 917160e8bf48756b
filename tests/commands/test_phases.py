"""All phases of a small study, with verdicts at the end."""

from __future__ import annotations

import json

import pytest
import yaml

pytestmark = pytest.mark.ray


@pytest.mark.slow
def test_all_phases_end_in_verdicts(cli, space, root, tmp_path):
    path = space(
        study={
            "name": "phases",
            "trials": 3,
            "startup_trials": 2,
            "noise_replicates": 2,
            "noise_samplings": 2,
            "confirm_top": 1,
            "confirm_replicates": 4,
            "confirm_refinements": 1,
        },
        training={"images": 1920},
        run={"max_concurrent": 2},
    )
    done = cli("sweep", path, "--phase", "all", timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    directory = root / "phases"
    verdicts = {one["arm"]: one for one in json.loads((directory / "verdicts.json").read_text())}
    assert {"label smoothing", "2nd alone", "SE alone"} < set(verdicts) and len(verdicts) == 4
    assert all(
        one["pairs"] == 4 and one["verdict"] in ("better", "not distinguishable", "worse") for one in verdicts.values()
    )
    assert "smallest detectable gap" in done.stdout and json.loads((directory / "noise.json").read_text())
    trial = next(arm for arm in verdicts if arm.startswith("trial"))
    number = int(trial.split()[1])
    made = cli("export", "--study", "phases", "--root", root, "--trial", number, "--out", tmp_path)
    assert made.returncode == 0, made.stderr
    exported = yaml.safe_load((tmp_path / f"phases-{number:05d}.yaml").read_text())
    assert exported["verdict"] == verdicts[trial]["verdict"] and exported["provenance"]["verdict"]["pairs"] == 4
    again = cli("sweep", path, "--phase", "confirm", timeout=600)  # nothing is left: it says the same again
    assert again.returncode == 0 and f"{trial}: {verdicts[trial]['verdict']}" in again.stdout
    report = (directory / "report" / "report.html").read_text()
    assert "label smoothing" in report and "2nd alone" in report


def test_a_phase_is_refused_with_one_line(cli, space):
    wrong = cli("sweep", space(), "--phase", "confrim")
    assert wrong.returncode == 2 and "did you mean 'confirm'" in wrong.stderr
    for phase in ("inference", "confirm"):  # nothing is trained, not even the tokenizer, to find that out
        early = cli("sweep", space(study={"name": "early"}), "--phase", phase)
        assert early.returncode == 2 and f"study 'early' has no finished trial to {phase} yet" in early.stderr
        assert early.stderr.count("\n") == 1 and "Ray" not in early.stdout
    few = cli("sweep", space(study={"confirm_replicates": 2}), "--phase", "confirm")
    assert few.returncode == 2 and "at least 4 pairs" in few.stderr
