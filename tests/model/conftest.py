"""Small networks with random weights whose logits vary."""

import pytest
import torch

from uvar_tune.model import preset


def lively(module: torch.nn.Module, size: float = 0.15) -> torch.nn.Module:
    """Fresh weights make near-constant logits; these do not."""
    generator = torch.Generator().manual_seed(7)
    for parameter in module.parameters():
        parameter.data.add_(size * torch.randn(parameter.shape, generator=generator))
    return module


@pytest.fixture(scope="module")
def vqvae():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return lively(preset("digits").build_vqvae(), 0.1).eval()


@pytest.fixture(scope="module")
def var():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return lively(preset("digits").build_var()).eval()


@pytest.fixture
def images():
    return torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1
