"""The fused loss against ``composite_loss``: values and gradients, every combination, precisions, blocks, edges."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.helpers import objective_oracle as oracle
from tests.helpers.objective_cases import COMBINATIONS, PREDICTIONS, exact, head_of, problem, reference, settings_of
from uvar_tune.objective import FIRST_ORDER, composite_loss, fused, fused_composite_loss

VALUES = ("total", "ce", "first_order", "second_order", "semantic_entropy")


def targets_of(case):
    return torch.from_numpy(case["targets"])


def both(leaves, case, settings):
    """(terms, gradients) of the fused loss and of autograd on the logits."""
    measured = []
    for side in ("fused", "autograd"):
        hidden_BLD, weight_VD, bias_V = leaves
        if side == "fused":
            result = fused_composite_loss(hidden_BLD, weight_VD, bias_V, targets_of(case), **settings)
        else:
            result = composite_loss(F.linear(hidden_BLD, weight_VD, bias_V), targets_of(case), **settings)
        measured.append((result, torch.autograd.grad(result.total, leaves)))
    return measured


@pytest.mark.parametrize("vocabulary", [2, 3, 17, 128])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_equals_autograd_in_float64(vocabulary, prediction):
    """In float64 no rounding hides a wrong formula: every combination, every first-order term."""
    case = problem(vocabulary, prediction)
    leaves = head_of(case, dtype=torch.float64)
    for (dispersion, discrepancy, normalize), first_order in itertools.product(COMBINATIONS, FIRST_ORDER):
        variance = reference(dispersion, case["codebook"])
        settings = settings_of(
            case, variance, dispersion=dispersion, discrepancy=discrepancy, normalize=normalize, first_order=first_order
        )
        (result, gradients), (expected, exact_gradients) = both(leaves, case, settings)
        for term in VALUES:
            torch.testing.assert_close(getattr(result, term), getattr(expected, term), rtol=1e-9, atol=1e-12)
        for name, values_L in expected.positions.items():
            torch.testing.assert_close(result.positions[name], values_L, rtol=1e-9, atol=1e-12)
        for gradient, wanted_gradient in zip(gradients, exact_gradients, strict=True):
            torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-6, atol=1e-11)


@pytest.mark.parametrize("vocabulary", [2, 3, 17, 128])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_float32_agrees_with_the_oracle(vocabulary, prediction):
    case = problem(vocabulary, prediction)
    leaves = head_of(case)
    exact_leaves = [leaf.detach().double().requires_grad_() for leaf in leaves]
    # Gradients of the weight are sums of gradients at the logits times hidden states, so errors scale with these.
    units = (1.0, max(1.0, float(np.abs(case["logits"]).max())), 1.0)
    for dispersion, discrepancy, normalize in COMBINATIONS:
        names = dict(dispersion=dispersion, discrepancy=discrepancy, normalize=normalize)
        variance = reference(dispersion, case["codebook"])
        result = fused_composite_loss(*leaves, targets_of(case), **settings_of(case, variance, **names))
        expected = exact(case, variance, **names)
        for term in VALUES:
            assert oracle.close(getattr(result, term).detach(), expected[term]), (names, term)
        for term, values_K in result.per_scale.items():
            assert oracle.close(values_K, expected["per_scale"][term]), (names, term)
        variance = reference(dispersion, case["codebook"], relative=(0.5, 0.9, 0.05))
        settings = settings_of(case, variance, **names)
        gradients = both(leaves, case, settings)[0][1]
        exact_gradients = both(exact_leaves, case, settings)[1][1]
        for gradient, wanted_gradient, unit in zip(gradients, exact_gradients, units, strict=True):
            assert oracle.close(gradient / unit, wanted_gradient / unit), names


@pytest.mark.parametrize("dispersion,discrepancy,normalize", COMBINATIONS)
def test_vocabulary_of_the_official_tokenizer(dispersion, discrepancy, normalize):
    case = problem(4096, code_dim=32)
    leaves = head_of(case, width=24)
    exact_leaves = [leaf.detach().double().requires_grad_() for leaf in leaves]
    variance = reference(dispersion, case["codebook"], relative=(0.5, 0.9, 0.05))
    settings = settings_of(case, variance, dispersion=dispersion, discrepancy=discrepancy, normalize=normalize)
    result, gradients = both(leaves, case, settings)[0]
    expected, exact_gradients = both(exact_leaves, case, settings)[1]
    for term in VALUES:
        assert oracle.close(getattr(result, term).detach(), getattr(expected, term).detach()), term
    for gradient, wanted_gradient in zip(gradients, exact_gradients, strict=True):
        unit = max(1.0, float(wanted_gradient.abs().max()))
        assert oracle.close(gradient / unit, wanted_gradient / unit)


@pytest.mark.parametrize("first_order", FIRST_ORDER)
@pytest.mark.parametrize("prediction", ["plain", "sharp", "nearly_one_hot", "nearly_uniform"])
def test_gradients_equal_finite_differences(prediction, first_order):
    case, step = problem(5, prediction, seed=1, batch=1), 1e-6
    leaves = head_of(case, dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    directions = [torch.randn(leaf.shape, generator=generator, dtype=torch.float64) for leaf in leaves]
    for dispersion, discrepancy, normalize in COMBINATIONS:
        variance = reference(dispersion, case["codebook"], relative=(0.5, 0.9, 0.05))
        settings = settings_of(
            case, variance, dispersion=dispersion, discrepancy=discrepancy, normalize=normalize, first_order=first_order
        )
        total = fused_composite_loss(*leaves, targets_of(case), **settings).total
        gradients = torch.autograd.grad(total, leaves)
        for which, (direction, gradient) in enumerate(zip(directions, gradients, strict=True)):
            ends = []
            for sign in (1.0, -1.0):
                moved = [leaf.detach() for leaf in leaves]
                moved[which] = moved[which] + sign * step * direction
                ends.append(float(fused_composite_loss(*moved, targets_of(case), **settings).total))
            slope = (ends[0] - ends[1]) / (2 * step)
            assert np.isclose(float((gradient * direction).sum()), slope, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("positions_at_once", [1, 5, 27, 28, 1000])
def test_blocks_need_not_divide(positions_at_once, monkeypatch):
    case = problem(33)
    leaves = head_of(case, width=7, dtype=torch.float64)
    settings = settings_of(case, reference("embedding", case["codebook"]), first_order="label_smoothing")
    monkeypatch.setitem(fused.BLOCK_ELEMENTS, "cpu", 33 * positions_at_once + 1)
    (result, gradients), (expected, exact_gradients) = both(leaves, case, settings)
    torch.testing.assert_close(result.total, expected.total, rtol=1e-12, atol=0)
    for gradient, wanted_gradient in zip(gradients, exact_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-9, atol=1e-14)


def test_all_logits_are_never_held(monkeypatch):
    case = problem(128)
    leaves = head_of(case, width=7)
    settings = settings_of(case, reference("embedding", case["codebook"]))
    monkeypatch.setitem(fused.BLOCK_ELEMENTS, "cpu", 128 * 4)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            nonlocal largest
            result = function(*arguments, **(keywords or {}))
            largest = max(
                [largest, *(x.numel() for x in torch.utils._pytree.tree_leaves(result) if torch.is_tensor(x))]
            )
            return result

    with Watch():
        fused_composite_loss(*leaves, targets_of(case), **settings).total.backward()
    most_needed = max(leaf.numel() for leaf in leaves)
    assert largest <= max(128 * 4, most_needed, 128 * (6 + 2)) < case["logits"].size


@pytest.mark.parametrize("expected", list(itertools.product([True, False], repeat=3))[1:-1])
def test_frozen_inputs_get_no_gradient(expected):
    case = problem(17)
    settings = settings_of(case, reference("embedding", case["codebook"]))
    free, frozen = head_of(case, width=5), head_of(case, width=5)
    for leaf, keep in zip(frozen, expected, strict=True):
        leaf.requires_grad_(keep)
    for leaves in (free, frozen):
        fused_composite_loss(*leaves, targets_of(case), **settings).total.backward()
    for leaf, other, keep in zip(free, frozen, expected, strict=True):
        assert torch.equal(leaf.grad, other.grad) if keep else other.grad is None


def test_without_gradient_the_values_are_the_same():
    case = problem(17)
    settings = settings_of(case, reference("embedding", case["codebook"]))
    leaves = head_of(case, width=5)
    result = fused_composite_loss(*leaves, targets_of(case), **settings)
    with torch.no_grad():
        quiet = fused_composite_loss(*leaves, targets_of(case), **settings)
    assert torch.equal(result.total, quiet.total) and not quiet.total.requires_grad
    assert result.total.requires_grad
    assert not any(getattr(result, term).requires_grad for term in VALUES[1:])


def test_scaled_total_and_second_backward():
    case = problem(17)
    settings = settings_of(case, reference("embedding", case["codebook"]))
    leaves = head_of(case, width=5)
    total = fused_composite_loss(*leaves, targets_of(case), **settings).total
    plain = torch.autograd.grad(total, leaves)
    total = fused_composite_loss(*leaves, targets_of(case), **settings).total
    scaled = torch.autograd.grad(3.0 * total, leaves, retain_graph=True)
    for once, thrice in zip(plain, scaled, strict=True):
        torch.testing.assert_close(3.0 * once, thrice)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(total, leaves)


def test_zero_weights_give_own_cross_entropy_bits():
    case = problem(128)
    settings = settings_of(case, reference("embedding", case["codebook"]), lambda_1=0.0, lambda_2=0.0)
    (result, gradients), (expected, by_autograd) = both(head_of(case, width=9), case, settings)
    assert torch.equal(result.total, result.ce) and oracle.close(result.total.detach(), expected.ce.detach())
    assert oracle.close(result.second_order, expected.second_order) and result.second_order > 0
    for gradient, wanted_gradient in zip(gradients, by_autograd, strict=True):
        assert oracle.close(gradient, wanted_gradient)


def test_products_follow_autocast():
    case = problem(64)
    settings = settings_of(case, reference("embedding", case["codebook"]))
    leaves = head_of(case, width=16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (result, gradients), (expected, by_autograd) = both(leaves, case, settings)
    outside, _ = both(leaves, case, settings)
    unit = 2.0**-8  # of bfloat16: both sides round the logits to it, and the gradients before their products
    for term in VALUES:
        assert getattr(result, term).dtype == torch.float32
        torch.testing.assert_close(getattr(result, term), getattr(expected, term), rtol=unit / 4, atol=unit / 4)
    for leaf, gradient, wanted_gradient in zip(leaves, gradients, by_autograd, strict=True):
        assert gradient.dtype == leaf.dtype
        largest = float(gradient.abs().max())
        torch.testing.assert_close(gradient, wanted_gradient, rtol=4 * unit, atol=2 * unit * largest)
    assert not torch.equal(result.total, outside[0].total)


def test_parameters_in_half_precision():
    case = problem(64)
    settings = settings_of(case, reference("embedding", case["codebook"]))
    leaves = head_of(case, width=16, dtype=torch.bfloat16)
    (result, gradients), (expected, _) = both(leaves, case, settings)
    torch.testing.assert_close(result.total, expected.total, rtol=2.0**-10, atol=0)
    assert result.total.dtype == torch.float32
    assert all(g.dtype == torch.bfloat16 and torch.isfinite(g).all() for g in gradients)
