import pytest
import torch

from uvar_tune.data.corruptions import CORRUPTIONS, OUT_OF_DISTRIBUTION, SEVERITIES, corrupt, out_of_distribution
from uvar_tune.errors import ConfigError


@pytest.fixture(scope="module")
def images():
    from sklearn.datasets import load_digits

    small = torch.tensor(load_digits().images[:24], dtype=torch.float32)[:, None] * (255 / 16)
    return torch.nn.functional.interpolate(small, 16, mode="bilinear").to(torch.uint8).expand(-1, 3, -1, -1)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_severity_grows_and_seed_repeats(kind, images):
    actual = [corrupt(images, kind, severity, seed=3) for severity in SEVERITIES]
    harm = [float((x.float() - images.float()).square().mean()) for x in actual]
    assert harm == sorted(harm) and harm[0] > 0
    assert all(x.dtype == torch.uint8 and x.shape == images.shape for x in actual)
    assert torch.equal(actual[2], corrupt(images, kind, 3, seed=3))
    grey = actual[4]
    assert torch.equal(grey[:, 0], grey[:, 1]) and torch.equal(grey[:, 1], grey[:, 2])


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_corruption_is_independent_of_the_batch(kind, images):
    whole = corrupt(images, kind, 4, seed=1)
    assert torch.equal(whole[10:13], corrupt(images[10:13], kind, 4, seed=1, start=10))


def test_seeds_and_images_differ(images):
    same = images[:1].expand(2, -1, -1, -1)
    for kind in ("gaussian_noise", "impulse_noise", "occlusion"):
        first = corrupt(same, kind, 3, seed=0)
        assert not torch.equal(first[0], first[1]) and not torch.equal(first, corrupt(same, kind, 3, seed=1))


def test_eight_kinds_at_five_severities():
    assert len(CORRUPTIONS) == 8 and all(len(strengths) == 5 for _, strengths in CORRUPTIONS.values())


def test_strengths_by_hand(images):
    flat = torch.full((1, 3, 16, 16), 102, dtype=torch.uint8)
    for kind in ("gaussian_blur", "motion_blur", "contrast", "pixelate"):
        assert torch.equal(corrupt(flat, kind, 5), flat), "no structure, nothing to lose"
    assert corrupt(flat, "brightness", 2).unique().tolist() == [153]
    share = (corrupt(flat.expand(200, -1, -1, -1), "impulse_noise", 5) != 102).float().mean()
    assert float(share) == pytest.approx(0.32, abs=0.01)
    square = corrupt(torch.zeros(9, 3, 16, 16, dtype=torch.uint8), "occlusion", 3) > 0
    assert set(square[:, 0].sum((1, 2)).tolist()) == {36}  # side 0.36·16 = 5.76, six pixels


def test_out_of_distribution_images(images):
    assert torch.equal(out_of_distribution(images, "inverted"), 255 - images)
    noise = out_of_distribution(images, "noise", seed=2)
    assert torch.equal(noise[4:6], out_of_distribution(images[4:6], "noise", seed=2, start=4))
    assert 120 < noise.float().mean() < 135 and set(OUT_OF_DISTRIBUTION) == {"noise", "inverted"}


def test_bad_names_and_severities(images):
    with pytest.raises(ConfigError, match="did you mean 'gaussian_blur'"):
        corrupt(images, "gausian_blur", 1)
    with pytest.raises(ConfigError, match="severity 6 .*did you mean '5'"):
        corrupt(images, "contrast", 6)
