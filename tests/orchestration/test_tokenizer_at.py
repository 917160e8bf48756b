"""A tokenizer that a study is given: a directory of ours or an official file, whose scales are not in it."""

from __future__ import annotations

import pytest
import torch

from uvar_tune.config import Config
from uvar_tune.errors import ConfigError
from uvar_tune.model import VQVAE, save_official
from uvar_tune.model.scales import OFFICIAL_SCALES
from uvar_tune.orchestration.build import tokenizer_at
from uvar_tune.training import save_tokenizer


def wanting(image_size: int, scales=(1, 2, 3, 4)) -> Config:
    """A study that is given its tokenizer."""
    return Config.model_validate({"data": {"image_size": image_size}, "tokenizer": {"path": "given", "scales": scales}})


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Number of scales → (network, official file, directory)."""
    folder, found = tmp_path_factory.mktemp("tokenizers"), {}
    for scales, levels in (((1, 2, 3, 4), 3), (OFFICIAL_SCALES[10], 2)):
        torch.manual_seed(len(scales))
        vqvae = VQVAE(vocab_size=16, code_dim=8, channels=8, scales=scales, channel_multipliers=(1,) * levels).eval()
        file, directory = folder / f"{len(scales)}.pth", folder / str(len(scales))
        save_official(vqvae, vae_path=file)
        save_tokenizer(directory, vqvae)
        found[len(scales)] = vqvae, file, directory
    return found


@pytest.mark.parametrize(("count", "size", "scales"), [(4, 16, (1, 2, 3, 4)), (10, 32, (1, 2, 3, 4))])
def test_a_file_and_a_directory_are_the_same_tokenizer(places, count, size, scales):
    vqvae, *both = places[count]
    images = torch.rand(2, 3, size, size) * 2 - 1
    for place in both:
        found = tokenizer_at(place, wanting(size, scales)).eval()
        assert found.scales == vqvae.scales and found.settings() == vqvae.settings()
        assert all(torch.equal(*pair) for pair in zip(found.encode(images), vqvae.encode(images), strict=True))


def test_one_file_serves_images_of_another_size_where_their_scales_are_told(places):
    longer = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
    assert tokenizer_at(places[10][1], wanting(64, longer)).scales == longer


@pytest.mark.parametrize(("count", "kind", "size", "said"), [
    (4, 1, 32, "data.image_size 32 is 8 codes wide with this tokenizer, and its scales end at 4 .tokenizer.scales."),
    (10, 1, 64, "data.image_size 64 is 32 codes wide"), (4, 2, 32, "its scales end at 4$")])
def test_images_of_another_size_are_refused(places, count, kind, size, said):
    with pytest.raises(ConfigError, match=said):
        tokenizer_at(places[count][kind], wanting(size))
