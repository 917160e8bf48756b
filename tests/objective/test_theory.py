"""The closed forms of §3 against linear programmes, Monte Carlo and enumeration."""

from __future__ import annotations

import itertools

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uvar_tune.errors import ConfigError
from uvar_tune.objective import (
    DISCREPANCIES,
    dirichlet_expected_entropy,
    dirichlet_moments,
    gaussian_wasserstein_2,
    total_variation,
    wasserstein_1,
)
from uvar_tune.objective.codebook_kernel import DISTANCES, distances
from uvar_tune.objective.semantic_entropy import semantic_entropy

DRAWS = 200_000


def simplex(rng, count, size, concentration=0.5):
    return torch.from_numpy(rng.dirichlet(np.full(size, concentration), size=count))


@pytest.mark.parametrize("name", DISTANCES)
def test_w1_is_optimal_transport(name):
    rng = np.random.default_rng(0)
    d0_VV = distances(torch.from_numpy(rng.standard_normal((12, 3))), name)
    for p_V, q_V in zip(simplex(rng, 6, 12), simplex(rng, 6, 12), strict=True):
        assert wasserstein_1(p_V, q_V, d0_VV) == pytest.approx(ot.emd2(p_V.numpy(), q_V.numpy(), d0_VV.numpy()))
        assert wasserstein_1(p_V, p_V, d0_VV) == pytest.approx(0.0, abs=1e-12)


def test_w1_under_the_trivial_cost_is_half_of_l1():
    rng = np.random.default_rng(1)
    trivial_VV = 1.0 - torch.eye(9, dtype=torch.float64)
    for p_V, q_V in zip(simplex(rng, 6, 9), simplex(rng, 6, 9), strict=True):
        assert wasserstein_1(p_V, q_V, trivial_VV) == pytest.approx(float(total_variation(p_V, q_V)))


def test_w1_lifts_to_second_order():
    rng = np.random.default_rng(2)
    d0_VV = distances(torch.from_numpy(rng.standard_normal((5, 2))))
    certain = torch.eye(5, dtype=torch.float64)
    assert wasserstein_1(certain[1], certain[3], d0_VV) == pytest.approx(float(d0_VV[1, 3]))
    first_MV, second_NV = simplex(rng, 3, 5), simplex(rng, 4, 5)
    cost_MN = torch.tensor([[wasserstein_1(p_V, q_V, d0_VV) for q_V in second_NV] for p_V in first_MV])
    weight_M, weight_N = simplex(rng, 1, 3)[0], simplex(rng, 1, 4)[0]
    lifted = wasserstein_1(weight_M, weight_N, cost_MN)
    assert lifted == pytest.approx(ot.emd2(weight_M.numpy(), weight_N.numpy(), cost_MN.numpy()))
    # Mixing cannot increase the distance: W1 of the mean predictions is below the lifted W1.
    assert wasserstein_1(weight_M @ first_MV, weight_N @ second_NV, d0_VV) <= lifted + 1e-12


def covariance(rng, size):
    factor = rng.standard_normal((size, size))
    return torch.from_numpy(factor @ factor.T)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_w2_between_gaussians_has_the_bures_term(size):
    rng = np.random.default_rng(size)
    mean, other_mean = torch.from_numpy(rng.standard_normal((2, size)))
    first, second = covariance(rng, size), covariance(rng, size)
    exact = ot.gaussian.bures_wasserstein_distance(mean.numpy(), other_mean.numpy(), first.numpy(), second.numpy())
    assert float(gaussian_wasserstein_2(mean, first, other_mean, second)) == pytest.approx(exact**2)
    direction = torch.from_numpy(rng.standard_normal(size))
    singular = torch.outer(direction, direction)  # for which the Bures term is √(uᵀΣ⋆u)
    exact = (mean - other_mean).square().sum() + singular.trace() + second.trace()
    exact = exact - 2.0 * (direction @ second @ direction).sqrt()
    assert float(gaussian_wasserstein_2(mean, singular, other_mean, second)) == pytest.approx(float(exact), rel=1e-6)
    assert float(gaussian_wasserstein_2(mean, first, mean, first)) == pytest.approx(0.0, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-6, 1e3), st.floats(1e-6, 1e3))
def test_w2_at_equal_means_is_the_discrepancy(a, b):
    mean = torch.tensor([0.7])
    a, b = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    exact = float(gaussian_wasserstein_2(mean, a.view(1, 1), mean, b.view(1, 1)))
    assert exact == pytest.approx(float((a.sqrt() - b.sqrt()) ** 2), abs=1e-9)
    assert exact == pytest.approx(float(DISCREPANCIES["wasserstein"](a, b, 0.0, 0.0)), abs=1e-9)


def test_w2_of_proportional_covariances():
    """What lets one number a position stand for a covariance of codes: Σ = aS, Σ⋆ = bS give Tr(S)(√a − √b)²."""
    shape = covariance(np.random.default_rng(3), 6)
    mean = torch.zeros(6)
    result = float(gaussian_wasserstein_2(mean, 0.3 * shape, mean, 2.0 * shape))
    a, b = 0.3 * shape.trace(), 2.0 * shape.trace()
    assert result == pytest.approx(float((a.sqrt() - b.sqrt()) ** 2))


@pytest.mark.parametrize("alpha", [(1.0, 1.0), (0.3, 2.0, 5.0), (40.0, 1.0, 1.0, 7.0), (0.05,) * 6])
def test_dirichlet_agrees_with_draws(alpha):
    draws = np.random.default_rng(4).dirichlet(alpha, size=DRAWS)
    mean_V, variance_V, spread = dirichlet_moments(torch.tensor(alpha))
    squared = ((draws - mean_V.numpy()) ** 2).sum(1)
    entropy = -np.where(draws > 0, draws * np.log(np.where(draws > 0, draws, 1.0)), 0.0).sum(1)
    expected = (
        (mean_V, draws),
        (variance_V, (draws - mean_V.numpy()) ** 2),
        (spread, squared),
        (dirichlet_expected_entropy(torch.tensor(alpha)), entropy),
    )
    for exact, sampled in expected:
        six_errors = 6 * sampled.std(0) / np.sqrt(DRAWS)
        assert (np.abs(sampled.mean(0) - exact.numpy()) <= six_errors).all()
    assert float(spread) == pytest.approx(float(variance_V.sum()))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=12))
def test_expected_entropy_is_below_that_of_mean(alpha):
    mean_V, _, _ = dirichlet_moments(torch.tensor(alpha))
    assert 0.0 <= float(dirichlet_expected_entropy(torch.tensor(alpha))) <= float(torch.special.entr(mean_V).sum())


def test_sequence_entropy_is_sum_over_positions():
    """§2.3, Eq. 5, by enumeration of all sequences of a scale, classes of sequences products of classes of codes."""
    positions, classes_V = 4, np.array([0, 1, 1, 2])
    p_LV = simplex(np.random.default_rng(5), positions, len(classes_V)).numpy()
    mass_of_class: dict[tuple, float] = {}
    for sequence in itertools.product(range(len(classes_V)), repeat=positions):
        probability = np.prod([p_LV[i, v] for i, v in enumerate(sequence)])
        key = tuple(classes_V[list(sequence)])
        mass_of_class[key] = mass_of_class.get(key, 0.0) + probability
    of_sequences = -sum(mass * np.log(mass) for mass in mass_of_class.values())
    mass_LG = torch.from_numpy(p_LV @ np.eye(3)[classes_V])
    assert of_sequences == pytest.approx(float(semantic_entropy(mass_LG).sum()))


def test_bad_input():
    p_V, cost = torch.tensor([0.5, 0.5]), torch.ones(2, 2)
    with pytest.raises(ConfigError, match="sum to 1"):
        wasserstein_1(torch.tensor([0.5, 0.6]), p_V, cost)
    with pytest.raises(ConfigError, match="shape"):
        wasserstein_1(p_V, p_V, cost[:1])
    with pytest.raises(ConfigError, match="symmetric"):
        gaussian_wasserstein_2(p_V, torch.tensor([[1.0, 2.0], [0.0, 1.0]]), p_V, torch.eye(2))
    with pytest.raises(ConfigError, match="eigenvalue -1"):
        gaussian_wasserstein_2(p_V, torch.eye(2), p_V, -torch.eye(2))
    for wrong in ([1.0, 0.0], [1.0, float("nan")]):
        with pytest.raises(ConfigError, match="Dirichlet"):
            dirichlet_moments(torch.tensor(wrong))
        with pytest.raises(ConfigError, match="Dirichlet"):
            dirichlet_expected_entropy(torch.tensor(wrong))
