"""The record of a trial: it raises nothing into a training, loses nothing that the disk refuses for a while, and is bounded."""

import contextlib
import json
import resource
import shutil

import pytest

from uvar_tune.tracking.metrics_log import MetricsLog, read_records


@contextlib.contextmanager
def files_of_at_most(size: int):
    """The system refuses to let any file of this process grow beyond this."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def points(path) -> list[tuple[int, float]]:
    return [
        (record["images"], record["values"]["loss/total"])
        for record in read_records(path)[0]
        if record["kind"] == "metrics"
    ]


def test_refused_lines_are_written_later_in_order(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics_log = MetricsLog(path)
    with files_of_at_most(1000):
        for i in range(50):
            metrics_log.metrics(64 * i, {"loss/total": 1.0 * i})
        metrics_log.event("log", text="something")
        assert 0 < len(points(path)) < 50 and path.read_bytes().endswith(b"\n") and path.stat().st_size <= 1000
        with pytest.raises(OSError):
            metrics_log.flush()
        assert path.read_bytes().endswith(b"\n")
    metrics_log.flush()
    assert points(path) == [(64 * i, 1.0 * i) for i in range(50)]
    assert [record["kind"] for record in read_records(path)[0]][-1] == "log"
    metrics_log.metrics(64 * 50, {"loss/total": 50.0})
    assert len(points(path)) == 51


def test_log_survives_a_missing_directory(tmp_path):
    path = tmp_path / "trial" / "metrics.jsonl"
    metrics_log = MetricsLog(path)
    shutil.rmtree(path.parent)
    for i in range(20):
        metrics_log.metrics(64 * i, {"loss/total": 1.0 * i})
    path.parent.mkdir()
    metrics_log.metrics(64 * 20, {"loss/total": 20.0})
    assert points(path) == [(64 * i, 1.0 * i) for i in range(21)]


def test_buffer_is_bounded_and_keeps_the_newest(tmp_path):
    path = tmp_path / "trial" / "metrics.jsonl"
    metrics_log = MetricsLog(path)
    shutil.rmtree(path.parent)
    for i in range(10_500):
        metrics_log.metrics(64 * i, {"loss/total": 1.0 * i})
    path.parent.mkdir()
    metrics_log.flush()
    assert points(path) == [(64 * i, 1.0 * i) for i in range(500, 10_500)]


def test_torn_line_and_repeated_steps(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = MetricsLog(path)
    for i in range(5):
        first.metrics(64 * i, {"loss/total": 1.0 * i})
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    second = MetricsLog(path, attempt=2)
    for i in range(2, 7):
        second.metrics(64 * i, {"loss/total": 1.0 * i})
    assert points(path) == [(64 * i, 1.0 * i) for i in range(7)]
    assert [json.loads(line)["attempt"] for line in path.read_text().splitlines()] == [1] * 4 + [2] * 3
