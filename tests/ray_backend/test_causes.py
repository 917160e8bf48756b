"""The cause of a crash: errors of several ranks, and files that a power failure left empty."""

from __future__ import annotations

import pytest

from uvar_tune.errors import ConfigError
from uvar_tune.ray_backend.cluster import ray_cluster
from uvar_tune.ray_backend.trainer import crash_outcome
from uvar_tune.specs import CrashReason, OutcomeKind, TrialOutcome, crash
from uvar_tune.trial.assets import _facts
from uvar_tune.trial.outcome_file import read_crash, read_outcome, write_crash, write_outcome

GLOO = RuntimeError("[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4242")
LOW = RuntimeError(
    "2 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 127.0.0.1, ID: 8b39) "
    "was 12.97GB used / 23.54GB limit (0.55)\nOOM kill reason: …"
)
FULL = OSError(28, "No space left on device", "/runs/study/trials/00001")


class Group(Exception):
    """As Ray Train raises it: rank → what it raised."""

    def __init__(self, **failures):
        super().__init__("training failed")
        self.worker_failures = {int(rank[1:]): failure for rank, failure in failures.items()}


@pytest.mark.parametrize(
    ("failures", "outcome"),
    [
        (
            {"r0": GLOO, "r1": LOW},
            crash(
                None,
                "Ray killed a worker because its node ran low on memory (12.97GB used / 23.54GB limit)",
                CrashReason.LOW_MEMORY,
            ),
        ),
        ({"r0": GLOO, "r1": FULL}, crash("OSError", "No space left on device", CrashReason.DISK_FULL)),
        ({"r0": GLOO, "r1": ValueError("label 12\nis none")}, crash("ValueError", "label 12 is none")),
        ({"r0": ValueError("first"), "r1": ValueError("second")}, crash("ValueError", "first")),
        ({"r0": GLOO}, crash("RuntimeError", str(GLOO))),
    ],
)
def test_the_failure_from_which_the_others_follow(failures, outcome):
    assert crash_outcome(Group(**failures)) == outcome


@pytest.mark.parametrize("left", ["", "{", "[]", "7"])
def test_a_damaged_end_is_none(tmp_path, left):
    """The attempt is then made again from its last checkpoint."""
    outcome = TrialOutcome(
        kind=OutcomeKind.COMPLETE, value=0.0, scores={"fid": 0.0}, inference_points=[{"fid": 0.0, "seeds": "b"}]
    )
    write_outcome(tmp_path, {"training": 1}, outcome)
    write_crash(tmp_path, 1, crash("OSError", "worker lost"))
    assert read_outcome(tmp_path, {"training": 1}) == outcome
    assert read_crash(tmp_path, 1) == crash("OSError", "worker lost")
    for name in ("outcome.json", "crash.json"):
        (tmp_path / name).write_text(left)
    assert read_outcome(tmp_path, {"training": 1}) is None and read_crash(tmp_path, 1) is None


def test_incomplete_tokenizer_is_trained_again(tmp_path):
    assert _facts(tmp_path) is None
    (tmp_path / "facts.json").write_text("")
    assert _facts(tmp_path) is None
    (tmp_path / "facts.json").write_text('{"codes_in_use": 64}')
    assert _facts(tmp_path) == {"codes_in_use": 64}


def test_ray_client_is_refused(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "ray://headnode:10001")
    with (
        pytest.raises(ConfigError, match="'ray://headnode:10001' is the address of a Ray client.*ray job submit"),
        ray_cluster(),
    ):
        pass
