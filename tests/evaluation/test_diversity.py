import math

import pytest
import torch
from prdc import compute_prdc

from uvar_tune.errors import ConfigError
from uvar_tune.evaluation.diversity import code_statistics, density_coverage, pairwise_ssim


@pytest.mark.parametrize(
    "real, fake, width, neighbours, spread",
    [(200, 150, 16, 5, 1.0), (90, 200, 3, 1, 0.7), (33, 17, 64, 15, 1.5), (300, 40, 2, 5, 3.0)],
)
def test_density_and_coverage_equal_prdc(real, fake, width, neighbours, spread, capsys):
    generator = torch.Generator().manual_seed(real)
    real_MF = torch.randn(real, width, generator=generator)
    fake_NF = torch.randn(fake, width, generator=generator) * spread + 0.1
    expected = compute_prdc(real_MF.double().numpy(), fake_NF.double().numpy(), neighbours)
    got = density_coverage(fake_NF, real_MF, neighbours=neighbours, block=37)
    assert got == pytest.approx({name: float(expected[name]) for name in got}, abs=1e-6)


def test_density_and_coverage_of_collapsed_samples():
    real_MF = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    got = density_coverage(real_MF[:1].expand(30, -1), real_MF)
    assert got["density"] >= 1 / 5 and got["coverage"] < 0.5
    with pytest.raises(ConfigError, match="5 neighbours"):
        density_coverage(real_MF, real_MF[:5])


def test_ssim_of_equal_and_different_images():
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(256, (1, 3, 16, 16), dtype=torch.uint8, generator=generator)
    assert pairwise_ssim(image.expand(6, -1, -1, -1)) == pytest.approx({"ssim_pairwise": 1.0, "diversity_ssim": 0.0})
    noise = torch.randint(256, (12, 3, 16, 16), dtype=torch.uint8, generator=generator)
    found = pairwise_ssim(noise)
    assert abs(found["ssim_pairwise"]) < 0.1 and found["ssim_pairwise"] + found["diversity_ssim"] == 1.0


def test_ssim_averages_all_pairs_of_few():
    from torchmetrics.functional.image import structural_similarity_index_measure as ssim

    images = torch.randint(256, (5, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    unit = images.float() / 255
    values = [float(ssim(unit[i : i + 1], unit[j : j + 1], data_range=1.0)) for i in range(5) for j in range(i)]
    assert pairwise_ssim(images, chunk=3)["ssim_pairwise"] == pytest.approx(sum(values) / len(values), abs=1e-6)


def test_ssim_compares_within_classes():
    black, white = torch.zeros(4, 3, 16, 16, dtype=torch.uint8), torch.full((4, 3, 16, 16), 255, dtype=torch.uint8)
    images, labels = torch.cat([black, white]), torch.tensor([0] * 4 + [1] * 4)
    assert pairwise_ssim(images, labels_N=labels)["ssim_pairwise"] == pytest.approx(1.0)
    assert pairwise_ssim(images)["ssim_pairwise"] < 0.6
    with pytest.raises(ConfigError, match="no two samples"):
        pairwise_ssim(images[3:5], labels_N=labels[3:5])
    with pytest.raises(ConfigError, match="window of 11"):
        pairwise_ssim(images[:, :, :8, :8])


def test_ssim_pairs_are_seeded():
    images = torch.randint(256, (40, 3, 11, 11), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    found = [pairwise_ssim(images, pairs=20, seed=seed)["ssim_pairwise"] for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]


def test_code_statistics_by_hand():
    tokens = torch.tensor([[0, 1, 1, 2, 2], [0, 1, 2, 1, 2]])
    got = code_statistics(tokens, scales=(1, 2), vocab_size=8)
    assert got["code_usage"] == 3 / 8 and got["code_usage/scale_1"] == 1 / 8 and got["code_usage/scale_2"] == 2 / 8
    assert got["code_entropy/scale_1"] == 0.0 and got["code_entropy/scale_2"] == pytest.approx(math.log(2))
    assert got["code_entropy"] == pytest.approx(-(0.2 * math.log(0.2) + 0.8 * math.log(0.4)))
