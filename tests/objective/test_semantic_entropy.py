"""Partitions of the codebook into semantic classes, and the entropy over them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uvar_tune.config.schema import LossConfig
from uvar_tune.errors import ConfigError
from uvar_tune.objective import PARTITIONS, build_classes
from uvar_tune.objective.semantic_entropy import semantic_entropy

GROUPS, EACH = 5, 8


def clusters(seed=0, spread=0.05):
    """A codebook of well separated groups in random order, and the group of each code."""
    rng = np.random.default_rng(seed)
    group_V = rng.permutation(np.repeat(np.arange(GROUPS), EACH))
    centres = 3.0 * np.eye(GROUPS, 6) + 0.5
    codebook_VC = centres[group_V] + spread * rng.standard_normal((GROUPS * EACH, 6))
    return torch.from_numpy(codebook_VC), torch.from_numpy(group_V)


def classes_of(partition, codebook, count=None, distance="euclidean", **arguments):
    settings = {"partition": partition, "class_count": count, "distance": distance}
    return build_classes(LossConfig().model_copy(update=settings), codebook=codebook, **arguments)


def same_partition(first_V, second_V):
    return torch.equal(first_V[:, None] == first_V, second_V[:, None] == second_V)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("name", PARTITIONS)
def test_partition_finds_the_groups(name, distance):
    codebook_VC, group_V = clusters()
    # Patches of which nothing but the group can be seen; the codes themselves are shuffled for this partition.
    decode = {"reconstruction": lambda codes: group_V[codes].double()[:, None, None].expand(-1, 3, 4).sin()}.get(name)
    if decode:
        codebook_VC = codebook_VC[torch.randperm(len(codebook_VC), generator=torch.Generator().manual_seed(0))]
    found_V = classes_of(name, codebook_VC, count=GROUPS, distance=distance, decode=decode)
    assert found_V.dtype == torch.int64 and same_partition(found_V, group_V)


@pytest.mark.parametrize("name", PARTITIONS)
@pytest.mark.parametrize("vocabulary,count", [(2, None), (17, None), (17, 17), (96, None), (96, 7)])
def test_classes_have_no_gaps(name, vocabulary, count):
    codebook_VC = torch.randn(vocabulary, 4, generator=torch.Generator().manual_seed(1))
    found_V = classes_of(name, codebook_VC, count=count, decode=lambda codes: codebook_VC[codes])
    assert found_V.unique().tolist() == list(range(count or max(2, vocabulary // 16)))
    first = [int((found_V == label).nonzero()[0]) for label in found_V.unique()]
    assert first == sorted(first) and first[0] == 0


def test_a_seed_repeats_the_partition():
    codebook_VC = torch.randn(96, 4, generator=torch.Generator().manual_seed(2))
    once, again = (classes_of("kmeans", codebook_VC, seed=3) for _ in range(2))
    assert torch.equal(once, again)


def test_agglomeration_bounds_the_diameter_of_classes():
    """Complete linkage: no partition of equal size from its own merges has a class wider than the last merge."""
    codebook_VC = torch.tensor([[0.0], [1.0], [2.0], [10.0], [11.0], [30.0]])
    found_V = classes_of("agglomerative", codebook_VC, count=3)
    assert found_V.tolist() == [0, 0, 0, 1, 1, 2]


def test_new_partition(monkeypatch):
    def _norm(codebook, count, distance, decode, seed):
        return np.argsort(np.argsort((codebook**2).sum(1))) * count // len(codebook)

    monkeypatch.setitem(PARTITIONS, "norm", _norm)
    assert classes_of("norm", torch.arange(8.0)[:, None], count=4).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


BAD = {
    "name": (dict(partition="kmean"), "did you mean 'kmeans'"),
    "distance": (dict(distance="cosin"), "did you mean 'cosine'"),
    "one class": (dict(count=1), "2 <= count <= 40"),
    "too many": (dict(count=41), "2 <= count <= 40"),
    "twins": (dict(codebook=torch.ones(40, 3), count=2), "only 1 codes are distinct"),
    "no decoder": (dict(partition="reconstruction"), "needs decode"),
    "patches": (dict(partition="reconstruction", decode=lambda codes: torch.ones(39, 3)), "39 patches for 40 codes"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused(case):
    changes, message = BAD[case]
    with pytest.raises(ConfigError, match=message):
        classes_of(**{"partition": "kmeans", "codebook": clusters()[0], **changes})


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.0, 1.0), min_size=2, max_size=9).filter(lambda mass: sum(mass) > 1e-3))
def test_entropy_is_within_its_bounds(mass):
    mass_G = torch.tensor(mass, dtype=torch.float64)
    mass_G = (mass_G / mass_G.sum()).requires_grad_()
    result = semantic_entropy(mass_G)
    assert -1e-12 <= float(result) <= np.log(len(mass)) + 1e-12
    assert torch.isfinite(torch.autograd.grad(result, mass_G)[0]).all()
    assert float(semantic_entropy(torch.eye(3)[1])) == 0.0
