"""Gradient shares against gradients of the whole loss, and the λ that moves a given share."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.helpers.objective_cases import COMBINATIONS, problem, reference, settings_of
from uvar_tune.config.schema import LossConfig
from uvar_tune.errors import ConfigError, Diverged
from uvar_tune.objective import composite_loss, gradient_shares, lambda_for_share, weights_for_shares


def call(case, function=gradient_shares, dtype=torch.float64, **changes):
    logits_BLV = torch.tensor(case["logits"], dtype=dtype, requires_grad=True)
    variance = changes.pop("variance", reference(changes.get("dispersion", "embedding"), case["codebook"]))
    settings = settings_of(case, variance, **changes)
    return logits_BLV, function(logits_BLV, torch.from_numpy(case["targets"]), **settings)


@pytest.mark.parametrize("dispersion,discrepancy,normalize", COMBINATIONS)
def test_shares_are_ratios_of_gradients_of_the_loss(dispersion, discrepancy, normalize):
    case = problem(24)
    names = dict(dispersion=dispersion, discrepancy=discrepancy, normalize=normalize)

    def gradient(**weights):
        logits_BLV, result = call(case, composite_loss, **names, **weights)
        return torch.autograd.grad(result.total, logits_BLV)[0].flatten()

    ce = gradient(lambda_1=0.0, lambda_2=0.0)
    terms = {
        "second_order": gradient(lambda_1=0.3, lambda_2=0.0) - ce,
        "semantic_entropy": gradient(lambda_1=0.0, lambda_2=0.2) - ce,
    }
    _, result = call(case, **names)
    for (term, moved), weight in zip(terms.items(), (0.3, 0.2), strict=True):
        assert result[term] == pytest.approx(float(moved.norm() / ce.norm()), rel=1e-6)
        assert result[f"{term}_unit"] == pytest.approx(result[term] / weight)
        assert result[f"{term}_cosine"] == pytest.approx(float(F.cosine_similarity(moved, ce, dim=0)), abs=1e-6)


def test_shares_ignore_blocks_and_autocast(monkeypatch):
    case = problem(24)
    logits_BLV, whole = call(case, dtype=torch.float32)
    monkeypatch.setattr(sys.modules["uvar_tune.objective.gradient_shares"], "_BLOCK_ELEMENTS", 24 * 5)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        _, in_blocks = call(case, dtype=torch.float32)
    assert in_blocks == pytest.approx(whole, rel=1e-5)
    assert logits_BLV.grad is None


def test_share_is_linear_in_weight():
    case = problem(24)
    _, once = call(case)
    _, thrice = call(case, lambda_1=0.9)
    assert thrice["second_order"] == pytest.approx(3 * once["second_order"])
    _, idle = call(case, lambda_1=0.0, lambda_2=0.0)
    assert idle["second_order"] == 0.0 and idle["second_order_unit"] == pytest.approx(once["second_order_unit"])
    codes = len(case["codebook"])
    even = {**case, "logits": np.zeros_like(case["logits"]), "classes": np.arange(codes) % 2}
    _, flat = call(even, discrepancy="squared", dispersion="probability")
    assert flat["second_order_unit"] == pytest.approx(0.0, abs=1e-12) and flat["second_order_cosine"] == 0.0


@pytest.mark.parametrize("term,setting", [("second_order", "lambda_1"), ("semantic_entropy", "lambda_2")])
@pytest.mark.parametrize("share", [1e-3, 0.02, 0.05])
def test_the_converted_weight_moves_the_asked_share(term, setting, share):
    case = problem(24)
    _, measured = call(case, lambda_1=0.0, lambda_2=0.0)
    weight = lambda_for_share(share, measured[f"{term}_unit"], term=term)
    _, result = call(case, **{setting: weight})
    assert result[term] == pytest.approx(share)


def test_shares_of_a_config_become_raw_weights():
    units = {"second_order_unit": 0.05, "semantic_entropy_unit": 0.2}
    raw = weights_for_shares(LossConfig(lambda_1=0.01, lambda_2=0.05, lambda_unit="share", discrepancy="kl"), units)
    assert raw.weights == pytest.approx((0.2, 0.25)) and (raw.lambda_unit, raw.discrepancy) == ("raw", "kl")
    assert weights_for_shares(LossConfig(lambda_1=0.01, lambda_unit="share"), units).weights == pytest.approx((0.2, 0))


def test_lambda_for_share_refuses():
    assert lambda_for_share(0.0, 0.2, term="second_order") == 0.0
    for arguments, message in (
        ((-0.1, 1.0, "second_order"), "0 <= share"),
        ((float("nan"), 1.0, "second_order"), "0 <= share"),
        ((0.1, 0.0, "second_order"), "no weight of second_order"),
        ((0.3, 0.2, "semantic_entropy"), "lambda_2 = 1.5, but lambda_2 < 1"),
        ((0.1, 1.0, "second"), "did you mean 'second_order'"),
    ):
        with pytest.raises(ConfigError, match=message):
            lambda_for_share(*arguments[:2], term=arguments[2])


def test_shares_of_what_is_no_number_diverge():
    case = problem(24)
    case["logits"][0, 3, 2] = np.nan
    with pytest.raises(Diverged, match="norm nan"):
        call(case)
    certain = problem(24, "one_hot")
    certain["logits"] *= 10
    certain["targets"] = certain["logits"].argmax(-1)
    with pytest.raises(Diverged, match="norm 0.0"):
        call(certain)


def test_bad_input_is_refused():
    with pytest.raises(ConfigError, match="24 is outside"):
        call({**problem(24), "targets": np.full((2, 14), 24)})
    with pytest.raises(ConfigError, match="unknown discrepancy 'kll'"):
        call(problem(24), discrepancy="kll")
