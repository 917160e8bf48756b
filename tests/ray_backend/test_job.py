"""A job that fails; one that succeeds is in `test_stopping`."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.ray


def test_a_failing_job_says_so(ray_cluster, space):
    failed = ray_cluster.submit("python", "-m", "uvar_tune.sweep", str(space()), "training.images=100")
    assert failed.returncode != 0
    assert "training.images" in failed.stdout + failed.stderr
