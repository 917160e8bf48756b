"""Inpainting keeps the known part and samples the rest."""

from __future__ import annotations

import pytest
import torch

from uvar_tune.errors import ConfigError
from uvar_tune.model import SamplingSettings, box_mask, generate, inpaint
from uvar_tune.model.scales import concat

SETTINGS, SEEDS = SamplingSettings(cfg_scale=1.5, top_k=50), [5, 6, 7, 8]


@pytest.fixture
def image(images):
    return images[0] / 2 + 0.5


def reconstruction(vqvae, image):
    return vqvae.decode(vqvae.encode(image[None] * 2 - 1))[0] / 2 + 0.5


@pytest.mark.parametrize("known", ["inside", "outside"])
def test_known_pixels_are_the_reconstruction(var, vqvae, image, known):
    mask = box_mask((4, 4, 12, 12), 16, known=known)
    images, tokens = inpaint(var, vqvae, image, mask, [3] * 4, SETTINGS, seeds=SEEDS)
    assert torch.allclose(images[:, :, mask], reconstruction(vqvae, image)[:, mask].expand(4, -1, -1), atol=1e-6)
    original = vqvae.encode(image[None] * 2 - 1)
    cells = mask.view(4, 4, 4, 4).permute(0, 2, 1, 3).flatten(2).all(-1).flatten()  # of the finest scale, 4 pixels wide
    assert cells.sum() == (4 if known == "inside" else 12)
    assert (tokens[-1][:, cells] == original[-1][:, cells]).all()
    assert len(torch.unique(images, dim=0)) == 4 and len(torch.unique(tokens[-1][:, ~cells], dim=0)) == 4


def test_only_whole_cells_are_known(var, vqvae, image):
    """A mask that leaves the left half and one more column known makes the left cells of the 2x2 scale known, no others."""
    mask = box_mask((0, 0, 9, 16), 16, known="inside")
    _, tokens = inpaint(var, vqvae, image, mask, [3] * 40, SamplingSettings(cfg_scale=0), seeds=range(40))
    original = vqvae.encode(image[None] * 2 - 1)
    assert (tokens[1][:, [0, 2]] == original[1][:, [0, 2]]).all()
    assert len(tokens[1][:, 1].unique()) > 1 and len(tokens[1][:, 3].unique()) > 1 and len(tokens[0].unique()) > 1


def test_sampled_part_depends_on_seed_and_label(var, vqvae, image):
    mask = box_mask((4, 4, 12, 12), 16, known="outside")
    tokens = concat(inpaint(var, vqvae, image, mask, [3] * 4, SETTINGS, seeds=SEEDS)[1])
    assert torch.equal(concat(inpaint(var, vqvae, image, mask, [3], SETTINGS, seeds=[5])[1]), tokens[:1])
    assert not torch.equal(concat(inpaint(var, vqvae, image, mask, [4] * 4, SETTINGS, seeds=SEEDS)[1]), tokens)
    free = concat(generate(var, vqvae, [3] * 4, SamplingSettings(cfg_scale=1.5, top_k=50), seeds=SEEDS)[1])
    assert torch.equal(tokens[:, 0], free[:, 0]) and not torch.equal(tokens, free)


def test_bad_requests_are_refused(var, vqvae, image):
    good = box_mask((4, 4, 12, 12), 16, known="outside")
    cases = [
        ({"known_SS": good[:8]}, "mask of shape .8, 16."),
        ({"known_SS": good.float()}, "float32"),
        ({"known_SS": torch.zeros_like(good)}, "hides everything"),
        ({"known_SS": torch.ones_like(good)}, "hides nothing"),
        ({"known_SS": box_mask((1, 1, 4, 4), 16, known="inside")}, "no whole cell of 4 pixels"),
        ({"image_3SS": image[:, :8]}, "image of shape"),
        ({"image_3SS": image * 2}, "not in .0, 1."),
        ({"image_3SS": image * torch.nan}, "not in .0, 1."),
        ({"labels_N": [12] * 4}, "label 12"),
        ({"settings": SamplingSettings(cfg_scale=-1.0)}, "cfg_scale"),
        ({"labels_N": [], "seeds": []}, "labels of shape"),
    ]
    for wrong, message in cases:
        with pytest.raises(ConfigError, match=message):
            request = {"image_3SS": image, "known_SS": good, "labels_N": [3] * 4, "settings": SETTINGS, "seeds": SEEDS}
            inpaint(var, vqvae, **{**request, **wrong})
    for box in ((4, 4, 4, 8), (-1, 0, 4, 4), (0, 0, 17, 4)):
        with pytest.raises(ConfigError, match="box"):
            box_mask(box, 16, known="inside")
