import pytest
import torch

from uvar_tune.data.corruptions import CORRUPTIONS, corrupt
from uvar_tune.errors import ConfigError
from uvar_tune.evaluation.calibration import auroc, ood_score
from uvar_tune.evaluation.robustness import (
    corrupted_sets,
    corruption_errors,
    mean_error,
    ood_detection,
    out_of_distribution_sets,
    read_out,
    tokenize,
)
from uvar_tune.model.scales import concat


@pytest.fixture
def images():
    return torch.randint(256, (10, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_tokens_equal_the_tokenizers(networks, images):
    var, vqvae = networks
    with torch.no_grad():
        expected = concat(vqvae.eval().encode(images.float() / 127.5 - 1))
    assert torch.equal(tokenize(vqvae, images, chunk=4), expected)
    with pytest.raises(ConfigError, match="16x16, expected 8x8"):
        tokenize(vqvae, torch.zeros(2, 3, 16, 16, dtype=torch.uint8))


def test_errors_by_kind_and_severity(networks, images):
    var, vqvae = networks
    labels = torch.arange(10) % 4
    calls = []
    sets = corrupted_sets(images, labels, kinds=["contrast", "gaussian_noise"], severities=[1, 5])
    got = corruption_errors(var, vqvae, sets, chunk=8, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (4, 4) and set(got) == {"contrast", "gaussian_noise"}
    guess = read_out(var, vqvae, corrupt(images, "gaussian_noise", 5), chunk=8).argmax(1)
    assert got["gaussian_noise"][1] == float((guess != labels).double().mean())
    assert mean_error(got) == pytest.approx(25 * sum(sum(shares) for shares in got.values()))
    assert len(corrupted_sets(images, labels)) == 5 * len(CORRUPTIONS)
    with pytest.raises(ConfigError, match="no images"):
        corruption_errors(var, vqvae, corrupted_sets(images[:0], labels[:0]))


def test_transform_is_independent_of_slicing(images):
    """Noise is drawn per image, so slices equal the whole."""
    noisy = corrupted_sets(images, torch.zeros(10), kinds=["gaussian_noise"], severities=[3], seed=4)[0].images
    whole = corrupt(images, "gaussian_noise", 3, seed=4)
    assert len(noisy) == 10 and torch.equal(torch.cat([noisy[0:4], noisy[4:8], noisy[8:12]]), whole)
    assert torch.equal(out_of_distribution_sets(images)["inverted"][2:5], 255 - images[2:5])


def test_out_of_distribution_detection(networks, images):
    var, vqvae = networks
    outside = {"inverted": 255 - images, "same": images, "flipped": images.flip(-1)}
    got = ood_detection(var, vqvae, images, outside, chunk=8)
    inside = ood_score(read_out(var, vqvae, images, chunk=8))
    assert got["auroc_ood/same"] == 0.5
    assert got["auroc_ood/inverted"] == auroc(inside, ood_score(read_out(var, vqvae, 255 - images, chunk=8)))
    assert got["auroc_ood"] == (got["auroc_ood/same"] + got["auroc_ood/flipped"]) / 2  # inverted is trivial
    assert "auroc_ood" not in ood_detection(var, vqvae, images, {"inverted": 255 - images}, chunk=8)
    with pytest.raises(ConfigError, match="no out-of-distribution"):
        ood_detection(var, vqvae, images, {})
