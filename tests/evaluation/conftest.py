"""What the evaluation tests share: the digits, one trained classifier, one small untrained VAR with its tokenizer."""

import pytest
import torch

from uvar_tune.config.schema import DataConfig, ModelConfig, TokenizerConfig
from uvar_tune.data import load_images
from uvar_tune.evaluation import save_classifier, train_classifier
from uvar_tune.model import VAR, VQVAE


@pytest.fixture(scope="session")
def digits():
    return {split: load_images(DataConfig(), split) for split in ("train", "validation")}


@pytest.fixture(scope="session")
def classifier(digits):
    return train_classifier(digits["train"], held_out=digits["validation"], seed=1)


@pytest.fixture(scope="session")
def classifier_directory(classifier, tmp_path_factory):
    return save_classifier(classifier, tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="session")
def extractor(classifier_directory):
    from uvar_tune.evaluation import open_extractor

    return open_extractor("digits", weights=classifier_directory)


@pytest.fixture
def networks():
    """(VAR of 4 classes, VQ-VAE of 24 codes) with random weights whose logits vary, for 8x8 images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        vqvae = VQVAE(
            TokenizerConfig(vocab_size=24, code_dim=8, channels=16, channel_multipliers=(1, 2), scales=(1, 2, 4))
        )
        var = VAR(ModelConfig(depth=2, width=32, heads=2), scales=(1, 2, 4), vocab_size=24, code_dim=8, num_classes=4)
        for parameter in var.parameters():
            parameter.data.add_(torch.randn(parameter.shape) * 0.15)
    return var, vqvae


@pytest.fixture
def held_out():
    """(tokens_NL, labels_N) of 11 images for ``networks``."""
    generator = torch.Generator().manual_seed(2)
    return torch.randint(24, (11, 21), generator=generator), torch.randint(4, (11,), generator=generator)
