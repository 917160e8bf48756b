"""Kernels of a given perplexity, tempering to a given entropy, and the ground metric."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uvar_tune.errors import ConfigError
from uvar_tune.objective.codebook_kernel import (
    DISTANCES,
    distances,
    kernel,
    mean_perplexity,
    perplexity,
    rows_of_perplexity,
    width_of_perplexity,
)
from uvar_tune.objective.reference import entropy, position_entropy, temper_to_position_entropy


def pairs(codes=30, seed=0):
    return distances(torch.from_numpy(np.random.default_rng(seed).standard_normal((codes, 4))))


@settings(max_examples=30, deadline=None)
@given(st.floats(1.01, 29.5), st.integers(0, 5), st.floats(1e-3, 1e3))
def test_each_row_reaches_the_asked_perplexity(expected, seed, scale):
    q_UV, reached_U = rows_of_perplexity(scale * pairs(seed=seed), expected)
    torch.testing.assert_close(reached_U, torch.full_like(reached_U, expected), rtol=1e-6, atol=0)
    torch.testing.assert_close(perplexity(q_UV), reached_U)
    assert (q_UV.argmax(1) == torch.arange(30)).all()


@settings(max_examples=20, deadline=None)
@given(st.floats(1.01, 25.0), st.floats(1e-3, 1e3))
def test_one_width_reaches_the_perplexity_on_average(expected, scale):
    distance_UV = scale * pairs()
    weight_U = torch.from_numpy(np.random.default_rng(1).dirichlet(np.ones(30)))
    width = width_of_perplexity(distance_UV, weight_U, expected)
    assert mean_perplexity(distance_UV, weight_U, width) == pytest.approx(expected, rel=1e-8)
    assert width_of_perplexity(distance_UV / scale, weight_U, expected) == pytest.approx(width / scale, rel=1e-6)


def test_the_kernel_falls_with_the_squared_distance():
    distance_UV, width = pairs(), 0.7
    q_UV = kernel(distance_UV, width)
    ratio = q_UV[3, 5] / q_UV[3, 9]
    exponent = (distance_UV[3, 9] ** 2 - distance_UV[3, 5] ** 2) / (2 * width**2)
    assert float(ratio) == pytest.approx(float(exponent.exp()))
    torch.testing.assert_close(q_UV.sum(1), torch.ones(30, dtype=torch.float64))


def test_codes_that_coincide():
    distance_UV = torch.zeros(4, 4, dtype=torch.float64)
    with pytest.raises(ConfigError, match="all codes coincide"):
        rows_of_perplexity(distance_UV, 2.0)
    distance_UV[:, 3] = distance_UV[3, :] = 1.0
    distance_UV[3, 3] = 0.0
    q_UV, reached_U = rows_of_perplexity(distance_UV, 2.0)
    assert reached_U[:3].tolist() == pytest.approx([3.0] * 3) and float(reached_U[3]) == pytest.approx(2.0)
    with pytest.raises(ConfigError, match="perplexity 2.0 cannot be reached"):
        width_of_perplexity(distance_UV, torch.full((4,), 0.25, dtype=torch.float64), 2.0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(2, 40), st.integers(2, 25))
def test_tempering_reaches_entropy_or_is_capped(seed, positions, draws, codes):
    rng = np.random.default_rng(seed)
    counts_PV = np.stack([rng.multinomial(draws, rng.dirichlet(np.full(codes, 0.5))) for _ in range(positions)])
    result = temper_to_position_entropy(counts_PV)
    pooled_V = counts_PV.sum(0)
    assert result.target_entropy == pytest.approx(position_entropy(counts_PV))
    assert result.entropy == pytest.approx(entropy(result.q_V)) and result.q_V.sum() == pytest.approx(1.0)
    assert (result.q_V[pooled_V == 0] == 0).all()
    order = np.argsort(pooled_V, kind="stable")
    assert (np.diff(result.q_V[order]) >= -1e-12).all()  # tempering keeps the order of the codes
    if not result.capped:
        assert result.entropy == pytest.approx(result.target_entropy, abs=1e-7)
    else:
        most = np.log((pooled_V > 0).sum())
        ties = np.log((pooled_V == pooled_V.max()).sum())
        assert result.target_entropy > most or result.target_entropy < ties
        assert result.entropy == pytest.approx(most if result.target_entropy > most else ties)


def test_one_position_keeps_its_histogram():
    counts_PV = np.array([[5000, 3000, 2000, 0]])
    result = temper_to_position_entropy(counts_PV)
    np.testing.assert_allclose(result.q_V, [0.5, 0.3, 0.2, 0.0], atol=2e-3)
    assert result.target_entropy == pytest.approx(entropy(np.array([0.5, 0.3, 0.2])) + 2 / 20_000)


def test_tempering_is_capped_at_ties():
    """Each position knows its code, the scale as a whole does not: q stays even between the tied codes."""
    result = temper_to_position_entropy(np.array([[9, 0, 0], [0, 9, 0]]))
    assert result.capped and result.q_V.tolist() == [0.5, 0.5, 0.0] and result.target_entropy == 0.0


@pytest.mark.parametrize("name", DISTANCES)
def test_ground_metric(name):
    codebook = np.random.default_rng(3).standard_normal((9, 4)) + 1.0
    result = distances(torch.from_numpy(codebook), name)
    for u in range(9):
        for v in range(9):
            cosine = codebook[u] @ codebook[v] / np.linalg.norm(codebook[u]) / np.linalg.norm(codebook[v])
            exact = np.linalg.norm(codebook[u] - codebook[v]) if name == "euclidean" else 1 - cosine
            assert float(result[u, v]) == pytest.approx(exact, abs=1e-12)
    assert float(result.diagonal().abs().max()) == 0.0
