"""A tokenizer of a study: a directory, or an official file, which does not contain its scales."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from uvar_tune.config.schema import Config, TokenizerConfig
from uvar_tune.data import TokenCache
from uvar_tune.errors import ConfigError
from uvar_tune.model import VQVAE, save_official
from uvar_tune.model.scales import OFFICIAL_SCALES
from uvar_tune.specs import Assets
from uvar_tune.tracking.metrics_log import MetricsLog
from uvar_tune.training import save_tokenizer
from uvar_tune.trial.assets import _tokens
from uvar_tune.trial.factory import load_split, open_tokenizer
from uvar_tune.trial.loss_constants import loss_constants


def wanting(image_size: int, scales=(1, 2, 3, 4)) -> Config:
    """A study that is given its tokenizer."""
    return Config.model_validate({"data": {"image_size": image_size}, "tokenizer": {"path": "given", "scales": scales}})


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Number of scales → (network, official file, directory)."""
    folder, result = tmp_path_factory.mktemp("tokenizers"), {}
    for scales, levels in (((1, 2, 3, 4), 3), (OFFICIAL_SCALES[10], 2)):
        torch.manual_seed(len(scales))
        vqvae = VQVAE(
            TokenizerConfig(vocab_size=16, code_dim=8, channels=8, scales=scales, channel_multipliers=(1,) * levels)
        ).eval()
        file, directory = folder / f"{len(scales)}.pth", folder / str(len(scales))
        save_official(vqvae, vae_path=file)
        save_tokenizer(directory, vqvae)
        result[len(scales)] = vqvae, file, directory
    return result


@pytest.mark.parametrize(("count", "size", "scales"), [(4, 16, (1, 2, 3, 4)), (10, 32, (1, 2, 3, 4))])
def test_file_and_directory_give_one_tokenizer(places, count, size, scales):
    vqvae, *both = places[count]
    images = torch.rand(2, 3, size, size) * 2 - 1
    for place in both:
        result = open_tokenizer(place, wanting(size, scales)).eval()
        assert result.scales == vqvae.scales and result.settings() == vqvae.settings()
        assert all(torch.equal(*pair) for pair in zip(result.encode(images), vqvae.encode(images), strict=True))


def test_file_with_phi_of_each_scale(tmp_path):
    """phi of its own for each of 10 scales: with the 4 that are the default it has too many."""
    vqvae = VQVAE(
        TokenizerConfig(
            vocab_size=16,
            code_dim=8,
            channels=8,
            scales=OFFICIAL_SCALES[10],
            channel_multipliers=(1, 1),
            share_quant_resi=0,
        )
    )
    save_official(vqvae, vae_path=tmp_path / "own.pth")
    assert open_tokenizer(tmp_path / "own.pth", wanting(32)).scales == OFFICIAL_SCALES[10]
    with pytest.raises(ConfigError, match="data.image_size 64"):
        open_tokenizer(tmp_path / "own.pth", wanting(64))


def test_unofficial_phi_share_is_not_written(tmp_path):
    vqvae = VQVAE(
        TokenizerConfig(vocab_size=16, code_dim=8, channels=8, scales=(1, 2), channel_multipliers=(1,), quant_resi=0.9)
    )
    with pytest.raises(ConfigError, match="quant_resi 0.9 is not stored in an official file"):
        save_official(vqvae, vae_path=tmp_path / "other.pth")
    assert not (tmp_path / "other.pth").exists()


def test_caches_depend_on_the_scales(places, tmp_path):
    """One file, two lists of scales: tokens and classes of each."""
    vqvae, file, _ = places[4]
    result = []
    for size, scales in ((8, (1, 2)), (16, (1, 2, 3, 4)), (16, (1, 3, 4))):
        config = wanting(size, scales).with_values(
            {
                "tokenizer.path": str(file),
                "loss.partition": "reconstruction",
                "loss.class_count": 3,
                "evaluation.extractor": "digits",
            }
        )
        images, given = load_split(config, "validation"), open_tokenizer(file, config)
        place = _tokens(config, tmp_path, file, "validation", images, given, MetricsLog(tmp_path / "record.jsonl"))
        assert TokenCache.open(place).scales == scales == given.scales
        assets = Assets(str(file), {"train": str(place)}, str(tmp_path), 10, [], {}, None, {})
        alone = loss_constants(config, replace(assets, cache=str(tmp_path / str(scales))), given)[1]
        assert torch.equal(loss_constants(config, assets, given)[1], alone)
        result.append(place)
    assert len(set(result)) == 3


def test_scales_of_config_fit_another_size(places):
    longer = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
    assert open_tokenizer(places[10][1], wanting(64, longer)).scales == longer


@pytest.mark.parametrize(
    ("count", "kind", "size", "said"),
    [
        (
            4,
            1,
            32,
            "data.image_size 32 is 8 codes wide with this tokenizer, and its scales end at 4 .tokenizer.scales.",
        ),
        (10, 1, 64, "data.image_size 64 is 32 codes wide"),
        (4, 2, 32, "its scales end at 4$"),
    ],
)
def test_images_of_another_size_are_refused(places, count, kind, size, said):
    with pytest.raises(ConfigError, match=said):
        open_tokenizer(places[count][kind], wanting(size))
