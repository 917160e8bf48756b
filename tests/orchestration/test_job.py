"""The README's cluster section, done literally: token authentication, `ray start --head`, `ray job submit`."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.ray


def test_a_submitted_study_outlives_its_job(ray_cluster, space, root):
    path = space(study={"name": "job", "trials": 1})
    tree = yaml.safe_load(path.read_text())
    del tree["run"]["root"]  # the default: a fixed place in the home directory
    path.write_text(yaml.safe_dump(tree))
    home = Path(ray_cluster.environment["HOME"])
    (home / "uvar_tune_runs").mkdir()
    (root / "cache").mkdir(exist_ok=True)
    (home / "uvar_tune_runs" / "cache").symlink_to(root / "cache")  # made once for all tests
    done = ray_cluster.submit("python", "-m", "uvar_tune.sweep", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout and str(home / "uvar_tune_runs") in done.stdout
    assert list((home / "uvar_tune_runs" / "job" / "export").glob("*.yaml"))
    assert (home / "uvar_tune_runs" / "job" / "report" / "report.html").exists()


def test_a_failing_job_says_so(ray_cluster, space):
    failed = ray_cluster.submit("python", "-m", "uvar_tune.sweep", str(space()), "training.images=100")
    assert failed.returncode != 0
    assert "training.images" in failed.stdout + failed.stderr
