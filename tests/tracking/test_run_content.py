import math
import os

import pytest

from uvar_tune.tracking.metrics_log import MetricsLog, read_records
from uvar_tune.tracking.run_content import missing_points, new_images, new_points, profile_table


@pytest.fixture
def metrics_log(tmp_path):
    return MetricsLog(tmp_path / "metrics.jsonl")


def test_values_that_are_not_finite_stay_in_the_log(tmp_path, metrics_log):
    metrics_log.metrics(64, {"fid": math.nan, "kid": 1.0})
    assert [point[0] for point in new_points(tmp_path, 0)[0]] == ["kid"]
    assert missing_points(tmp_path, {"fid": math.nan, "is": math.inf}, 7.0) == []


def test_points_have_value_time_and_images(tmp_path, metrics_log):
    metrics_log.metrics(64, {"loss/total": 0.5, "grad_norm": math.inf, "images_per_sec": 7.0, "ece_class": 0.5})
    metrics_log.event("log", text="not a metric")
    points, end = new_points(tmp_path, 0)
    recorded = int(read_records(tmp_path / "metrics.jsonl")[0][0]["time"] * 1000)
    assert points == [
        ("loss/total", 0.5, recorded, 64),
        ("speed/images_per_sec", 7.0, recorded, 64),
        ("other/ece_class", 0.5, recorded, 64),
    ]
    assert end == (tmp_path / "metrics.jsonl").stat().st_size and new_points(tmp_path, end) == ([], end)


def test_values_of_scales_become_one_curve(tmp_path, metrics_log):
    metrics_log.metrics(64, {"fid": 2.0, "nll_token/scale_1": 3.0, "nll_token/scale_10": 1.0})
    at = int(read_records(tmp_path / "metrics.jsonl")[0][0]["time"] * 1000)
    assert new_points(tmp_path, 0)[0] == [("fid", 2.0, at, 64)]
    values = {"fid": 2.0, "nll_token/scale_1": 3.0, "nll_token/scale_2": 2.0}
    assert sorted(missing_points(tmp_path, values, 7.0)) == [
        ("scales/nll_token", 1.0, at, 10),
        ("scales/nll_token", 2.0, at, 2),
        ("scales/nll_token", 3.0, at, 1),
    ]


def test_table_of_scores_over_cfg(tmp_path, metrics_log):
    assert profile_table(tmp_path) is None
    metrics_log.event("score", images=640, cfg_scale=1.0, seeds="evaluation", fid=4.0)
    for attempt_fid in (3.0, 3.5):  # an attempt killed while it scored scores again
        metrics_log.event("score", images=640, cfg_scale=1.0, seeds="selection", fid=attempt_fid, kid=math.nan)
    metrics_log.event("score", images=640, cfg_scale=0.5, temperature=0.9, seeds="selection", fid=2.0)
    assert profile_table(tmp_path) == {
        "columns": ["cfg_scale", "temperature", "seeds", "fid", "kid"],
        "data": [
            [0.5, 0.9, "selection", 2.0, None],
            [1.0, None, "selection", 3.0, "nan"],
            [1.0, None, "evaluation", 4.0, None],
        ],
    }


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
