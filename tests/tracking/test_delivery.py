import math
import os

import pytest

from uvar_tune.tracking.delivery import missing_points, new_images, new_points
from uvar_tune.tracking.metrics_log import MetricsLog, read_records


@pytest.fixture
def metrics_log(tmp_path):
    return MetricsLog(tmp_path / "metrics.jsonl")


def test_points_have_value_time_and_images(tmp_path, metrics_log):
    metrics_log.metrics(64, {"loss/total": 0.5, "grad_norm": math.inf})
    metrics_log.event("log", text="not a metric")
    points, end = new_points(tmp_path, 0, [])
    recorded = int(read_records(tmp_path / "metrics.jsonl")[0][0]["time"] * 1000)
    assert points == [("loss/total", 0.5, recorded, 64), ("grad_norm", math.inf, recorded, 64)]
    assert end == (tmp_path / "metrics.jsonl").stat().st_size and new_points(tmp_path, end, []) == ([], end)


def test_repeated_scores_are_dropped(tmp_path, metrics_log):
    scored = []
    for attempt_fid in (3.0, 3.5):  # an attempt killed while it scored scores again
        metrics_log.event("score", images=640, cfg_scale=0.5, seeds="selection", fid=attempt_fid, kid=math.nan)
    metrics_log.event("score", images=640, cfg_scale=0.5, seeds="evaluation", fid=4.0)
    points, end = new_points(tmp_path, 0, scored)
    assert [(key, value, step) for key, value, _, step in points if key.endswith("fid")] == [
        ("cfg_search/fid", 3.0, 500),
        ("cfg_evaluation/fid", 4.0, 500),
    ]
    assert math.isnan(next(value for key, value, _, _ in points if key == "cfg_search/kid"))
    metrics_log.event("score", images=640, cfg_scale=0.5, seeds="selection", fid=9.0)
    assert new_points(tmp_path, end, scored)[0] == []


def test_scores_at_two_temperatures_are_both_kept(tmp_path, metrics_log):
    for temperature, fid in ((1.0, 3.0), (0.9, 2.0), (1.0, 3.0)):
        metrics_log.event("score", images=640, cfg_scale=0.5, temperature=temperature, seeds="selection", fid=fid)
    points, _ = new_points(tmp_path, 0, [])
    assert [(value, step) for key, value, _, step in points if key == "cfg_search/fid"] == [(3.0, 500), (2.0, 500)]


def test_missing_points_are_those_not_logged(tmp_path, metrics_log):
    metrics_log.metrics(64, {"kid": 1.0})
    metrics_log.metrics(128, {"fid": 2.0})
    at = int(read_records(tmp_path / "metrics.jsonl")[0][-1]["time"] * 1000)
    assert missing_points(tmp_path, {"fid": 2.0, "kid": 0.5}, 7.0) == [("kid", 0.5, at, 128)]
    assert missing_points(tmp_path / "nowhere", {"fid": 2.0}, 7.0) == [("fid", 2.0, 7000, 0)]


def test_image_is_sent_when_complete_and_when_changed(tmp_path):
    path, sent = tmp_path / "000640.png", {}
    path.write_bytes(b"half")
    assert new_images(tmp_path, sent, final=False) == []
    os.utime(path, (1, 1))
    [(found, mark)] = new_images(tmp_path, sent, final=False)
    sent[found.name] = mark
    assert new_images(tmp_path, sent, final=True) == []
    path.write_bytes(b"whole")
    assert [found for found, _ in new_images(tmp_path, sent, final=True)] == [path]
