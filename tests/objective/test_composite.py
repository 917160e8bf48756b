"""The composite objective against the float64 oracle, at every combination and at the edges of the simplex."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.helpers import objective_oracle as oracle
from tests.helpers.objective_cases import COMBINATIONS, PREDICTIONS, exact, problem, reference, settings_of
from uvar_tune.objective import FIRST_ORDER, composite_loss


def run(case, variance, dtype=torch.float32, requires_grad=False, **settings):
    logits = torch.tensor(case["logits"], dtype=dtype, requires_grad=requires_grad)
    return logits, composite_loss(logits, torch.from_numpy(case["targets"]), **settings_of(case, variance, **settings))


@pytest.mark.parametrize("vocabulary", [2, 3, 17, 128, 4096])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_terms_agree_with_the_oracle(vocabulary, prediction):
    case = problem(vocabulary, prediction)
    for dispersion, discrepancy, normalize in COMBINATIONS:
        variance = reference(dispersion, case["codebook"])
        settings = dict(dispersion=dispersion, discrepancy=discrepancy, normalize=normalize)
        logits, result = run(case, variance, requires_grad=True, **settings)
        expected = exact(case, variance, **settings)
        for term in ("total", "ce", "first_order", "second_order", "semantic_entropy"):
            assert oracle.close(getattr(result, term).detach(), expected[term]), (settings, term)
        for term, values_K in result.per_scale.items():
            assert oracle.close(values_K, expected["per_scale"][term]), (settings, term)
        gradient = torch.autograd.grad(result.total, logits)[0]
        assert torch.isfinite(gradient).all(), settings


@pytest.mark.parametrize("name", FIRST_ORDER)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_first_order_terms_agree_with_the_oracle(name, prediction):
    case = problem(33, prediction)
    variance = reference("embedding", case["codebook"])
    for strength in (0.0, 0.05, 0.7):
        settings = dict(first_order=name, epsilon=strength, alpha=strength)
        logits, result = run(case, variance, requires_grad=True, **settings)
        expected = exact(case, variance, **settings)
        assert oracle.close(result.first_order.detach(), expected["first_order"]), strength
        assert oracle.close(result.total.detach(), expected["total"]), strength
        assert torch.isfinite(torch.autograd.grad(result.total, logits)[0]).all()


@pytest.mark.parametrize("prediction", ["plain", "sharp", "nearly_one_hot", "nearly_uniform"])
@pytest.mark.parametrize("first_order", FIRST_ORDER)
def test_gradients_equal_finite_differences(prediction, first_order):
    case = problem(4, prediction, seed=1, batch=1)
    step, rng = 1e-6, np.random.default_rng(2)
    centre = case["logits"].astype(np.float64)
    directions = rng.standard_normal((3, *centre.shape))
    for dispersion, discrepancy, normalize in COMBINATIONS:
        variance = reference(dispersion, case["codebook"], relative=(0.5, 0.9, 0.05))
        settings = dict(dispersion=dispersion, discrepancy=discrepancy, normalize=normalize, first_order=first_order)
        gradients = {}
        for dtype in (torch.float32, torch.float64):
            logits, result = run(case, variance, dtype=dtype, requires_grad=True, **settings)
            gradients[dtype] = torch.autograd.grad(result.total, logits)[0].double().numpy()
        for direction in directions:
            ahead = exact(case, variance, logits=centre + step * direction, **settings)["total"]
            behind = exact(case, variance, logits=centre - step * direction, **settings)["total"]
            assert np.isclose(
                (gradients[torch.float64] * direction).sum(), (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-8
            )
        assert oracle.close(gradients[torch.float32], gradients[torch.float64]), settings


@pytest.mark.parametrize("smoothing", [0.0, 1e-4, 0.3])
def test_kl_smoothing(smoothing):
    for prediction in PREDICTIONS:
        case = problem(16, prediction)
        variance = reference("embedding", case["codebook"], relative=(0.5, 0.9, 0.05))
        settings = dict(discrepancy="kl", kl_smoothing=smoothing)
        logits, result = run(case, variance, requires_grad=True, **settings)
        assert oracle.close(result.second_order.detach(), exact(case, variance, **settings)["second_order"]), prediction
        assert torch.isfinite(torch.autograd.grad(result.total, logits)[0]).all(), prediction


def test_zero_weights_give_cross_entropy_bits():
    case = problem(128)
    variance = reference("embedding", case["codebook"])
    logits, result = run(case, variance, requires_grad=True, lambda_1=0.0, lambda_2=0.0)
    plain = torch.tensor(case["logits"], requires_grad=True)
    ce = F.cross_entropy(plain.flatten(0, 1), torch.from_numpy(case["targets"]).flatten())
    assert torch.equal(result.total, ce)
    assert torch.equal(torch.autograd.grad(result.total, logits)[0], torch.autograd.grad(ce, plain)[0])
    assert result.second_order > 0 and not result.second_order.requires_grad
    assert result.semantic_entropy > 0 and not result.semantic_entropy.requires_grad


def test_terms_are_float32_under_autocast():
    case = problem(64)
    variance = reference("embedding", case["codebook"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, inside = run(case, variance)
    _, outside = run(case, variance)
    assert inside.total.dtype == torch.float32 and torch.equal(inside.total, outside.total)
    halves = torch.tensor(case["logits"]).bfloat16()
    _, from_half = run(case, variance, dtype=torch.bfloat16)
    _, rounded = run({**case, "logits": halves.float().numpy()}, variance)
    assert torch.equal(from_half.total, rounded.total)


def test_uniform_reference_is_collision_penalty():
    case = problem(32)
    _, result = run(case, np.zeros(3, np.float32), dispersion="probability")
    p, _ = oracle.softmax(case["logits"].astype(np.float64))
    assert oracle.close(result.second_order, (((p**2).sum(-1) - 1 / 32) / (1 - 1 / 32)).mean())
