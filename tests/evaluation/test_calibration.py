import math

import pytest
import torch
from sklearn.metrics import roc_auc_score

from uvar_tune.errors import ConfigError
from uvar_tune.evaluation.calibration import (
    auroc,
    best_of_grid,
    class_calibration,
    expected_calibration_error,
    mean_corruption_error,
    ood_score,
    temperature_grid,
)


@pytest.mark.parametrize(
    "confidence, correct, expected",
    [
        ([1.0, 1.0, 1.0, 1.0], [1, 1, 1, 1], 0.0),
        ([1.0, 1.0, 1.0, 1.0], [1, 1, 0, 0], 0.5),
        ([1.0 + 1e-7, 0.0], [1, 0], 0.0),
        ([0.55, 0.57, 0.95, 0.98], [1, 0, 1, 1], (abs(1 - 1.12) + abs(2 - 1.93)) / 4),
        ([0.1, 0.2], [0, 0], 0.15),  # upper edges belong to their bin: (0, 0.1], (0.1, 0.2]
    ],
)
def test_ece_by_hand(confidence, correct, expected):
    got = expected_calibration_error(torch.tensor(confidence), torch.tensor(correct), bins=10)
    assert got == pytest.approx(expected, abs=1e-6)


def test_ece_of_calibrated_predictions_vanishes():
    generator = torch.Generator().manual_seed(0)
    confidence = torch.rand(200_000, generator=generator)
    correct = torch.rand(200_000, generator=generator) < confidence
    assert expected_calibration_error(confidence, correct) < 0.01  # 15 bins, each off by about 0.004


def test_temperature_grid_finds_the_vertex():
    grid = temperature_grid()
    assert float((grid - 1).abs().min()) < 1e-12 and grid[0] == 0.25 and grid[-1] == 4.0
    assert best_of_grid(grid, (grid.log() - math.log(1.37)) ** 2) == pytest.approx(1.37, rel=1e-9)
    assert best_of_grid(grid, grid) == 0.25 and best_of_grid(grid, -grid) == 4.0


def test_class_calibration_recovers_a_temperature():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(20_000, 5, generator=generator, dtype=torch.float64) * 2
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    got = class_calibration(logits * 3 - 50, labels)  # overconfident by a factor of 3; the constant must not matter
    assert got["temperature_class"] == pytest.approx(3.0, rel=0.05)
    assert got["ece_class_tempered"] < 0.02 < got["ece_class"] and got["nll_class_tempered"] < got["nll_class"]
    assert got["accuracy"] == float((logits.argmax(1) == labels).double().mean())


def test_class_calibration_by_hand():
    got = class_calibration(torch.log(torch.tensor([[0.8, 0.2], [0.6, 0.4]])), torch.tensor([0, 1]))
    assert got["accuracy"] == 0.5 and got["nll_class"] == pytest.approx(-(math.log(0.8) + math.log(0.4)) / 2)
    assert got["ece_class"] == pytest.approx((0.2 + 0.6) / 2)  # two bins: 0.8 is right, 0.6 is wrong


def test_ood_score_by_hand():
    assert ood_score(torch.log(torch.tensor([[0.1, 0.3]]))).item() == pytest.approx(-math.log(0.2))


def test_auroc_with_ties():
    generator = torch.Generator().manual_seed(2)
    inside, outside = torch.randint(6, (80,), generator=generator), torch.randint(2, 8, (50,), generator=generator)
    expected = roc_auc_score([0] * 80 + [1] * 50, torch.cat([inside, outside]))
    assert auroc(inside, outside) == pytest.approx(expected, abs=1e-12)
    assert auroc(torch.zeros(3), torch.ones(2)) == 1.0 and auroc(torch.ones(3), torch.ones(2)) == 0.5


def test_mce_by_hand():
    errors, divisor = {"fog": [0.1, 0.2], "snow": [0.4, 0.4]}, {"fog": [0.2, 0.4], "snow": [0.2, 0.2]}
    assert mean_corruption_error(errors, divisor) == pytest.approx(100 * (0.5 + 2) / 2)
    assert mean_corruption_error(divisor, divisor) == 100.0
    with pytest.raises(ConfigError, match="snow"):
        mean_corruption_error(errors, {"fog": [1, 1]})
    with pytest.raises(ConfigError, match="no error under fog"):
        mean_corruption_error(errors, {"fog": [0, 0], "snow": [1, 1]})
