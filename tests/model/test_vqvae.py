"""The tokenizer against a naive float64 implementation, and its errors."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from uvar_tune.config.schema import TokenizerConfig
from uvar_tune.errors import ConfigError
from uvar_tune.model import VQVAE, autoencoder
from uvar_tune.model.autoencoder import Upsample, in_chunks
from uvar_tune.model.scales import phi_index


def naive_quantize(vqvae, features):
    """(tokens, teacher inputs, accumulated features) in float64, code by code."""
    codes, scales, quantizer = vqvae.codebook_VC.double(), vqvae.scales, vqvae.quantize
    rest, accumulated, full = features.double(), torch.zeros_like(features.double()), scales[-1]
    tokens, inputs = [], []
    for k, side in enumerate(scales):
        pooled = F.interpolate(rest, size=(side, side), mode="area")
        distance = (pooled.permute(0, 2, 3, 1)[..., None, :] - codes).square().sum(-1)
        tokens.append(distance.argmin(-1).flatten(1))
        h = codes[tokens[-1]].transpose(1, 2).unflatten(2, (side, side))
        h = F.interpolate(h, size=(full, full), mode="bicubic") if side != full else h
        phi = quantizer.quant_resi.at(phi_index(k, len(scales), 4))
        h = 0.5 * h + 0.5 * F.conv2d(h, phi.weight.double(), phi.bias.double(), padding=1)
        accumulated, rest = accumulated + h, rest - h
        if k + 1 < len(scales):
            inputs.append(F.interpolate(accumulated, size=(scales[k + 1],) * 2, mode="area").flatten(2).transpose(1, 2))
    return tokens, torch.cat(inputs, 1), accumulated


@torch.no_grad()
def test_quantization_equals_naive_one(vqvae, images):
    features = vqvae.quant_conv(vqvae.encoder(images))
    tokens, teacher_input, accumulated = naive_quantize(vqvae, features)
    actual, given = vqvae.encode(images, with_teacher_input=True)
    assert all(torch.equal(a, b) for a, b in zip(actual, tokens, strict=True))
    assert torch.allclose(given.double(), teacher_input, rtol=0, atol=1e-5)
    assert torch.equal(vqvae.teacher_input(actual), given)
    assert given.dtype == torch.float32 and given.shape == (5, 29, 16)
    assert torch.allclose(vqvae.quantize.features(actual).double(), accumulated, rtol=0, atol=1e-5)


def test_training_forward_follows_the_definition(vqvae, images):
    reconstruction, loss, tokens = vqvae(images)
    assert all(torch.equal(a, b) for a, b in zip(tokens, vqvae.encode(images), strict=True))
    assert torch.allclose(reconstruction.detach().clamp(-1, 1), vqvae.decode(tokens), atol=1e-5)
    features, running, expected = vqvae.quant_conv(vqvae.encoder(images)).detach(), 0, 0
    for k, part in enumerate(tokens):
        running = running + vqvae.quantize.decode_scale(part, k).detach()
        expected = expected + 1.25 * F.mse_loss(running, features) / len(tokens)
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-5)
    (reconstruction.square().mean() + loss).backward()
    assert all(parameter.grad is not None for parameter in vqvae.parameters())
    vqvae.zero_grad()


def test_straight_through_gradient_is_identity(vqvae):
    features = torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    through, _, _ = vqvae.quantize(features)
    weight = torch.randn(through.shape, generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.autograd.grad((through * weight).sum(), features)[0], weight)


def test_upsampling_equals_nearest_and_conv():
    layer = Upsample(6).double()
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    expected = layer.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    assert torch.allclose(layer(x), expected, rtol=0, atol=1e-13)


@torch.no_grad()
@pytest.mark.parametrize("layout_from", [0, 2**17])
def test_chunks_give_the_same_activations(vqvae, images, monkeypatch, layout_from):
    """5 images in chunks of 1, 2 and 4 at the three resolutions, in both memory layouts."""
    monkeypatch.setattr(autoencoder, "CACHED_NUMBERS", 2**14)
    monkeypatch.setattr(autoencoder, "CHANNELS_LAST_NUMBERS", layout_from)
    vqvae, images = copy.deepcopy(vqvae).double(), images.double()
    features = vqvae.encoder(images)
    for network, given, expected in (
        (vqvae.encoder, images, features),
        (vqvae.decoder, features, vqvae.decoder(features)),
    ):
        actual = in_chunks(network, given, 16)
        assert torch.allclose(actual, expected, rtol=0, atol=1e-10) and actual.is_contiguous()


@pytest.mark.parametrize(
    ("count", "expected"), [(10, [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]), (14, [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3])]
)
def test_phi_of_the_official_schedules(count, expected):
    assert [phi_index(k, count, 4) for k in range(count)] == expected


@pytest.mark.parametrize("share", [0, 1, 2, 4])
def test_settings_rebuild_the_same_tokenizer(share, images):
    vqvae = VQVAE(
        TokenizerConfig(
            vocab_size=20,
            code_dim=8,
            channels=16,
            scales=(1, 2, 4),
            channel_multipliers=(1, 1, 2),
            share_quant_resi=share,
        )
    )
    again = VQVAE.from_settings(vqvae.settings())
    again.load_state_dict(vqvae.state_dict())
    assert again.image_size == 16 and again.settings() == vqvae.settings()
    assert torch.equal(torch.cat(again.encode(images), 1), torch.cat(vqvae.encode(images), 1))


def test_autocast_does_not_touch_the_tokens(vqvae, images):
    plain = vqvae.encode(images, with_teacher_input=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tokens, teacher_input = vqvae.encode(images, with_teacher_input=True)
        assert torch.equal(vqvae.teacher_input(tokens), plain[1])
    assert torch.equal(torch.cat(tokens, 1), torch.cat(plain[0], 1)) and torch.equal(teacher_input, plain[1])


def test_bad_images_and_tokens_are_refused(vqvae, images):
    with pytest.raises(ConfigError, match=r"\(5, 3, 8, 8\).*\(B, 3, 16, 16\)"):
        vqvae.encode(images[:, :, :8, :8])
    images[2, 1, 3, 3] = torch.nan
    with pytest.raises(ConfigError, match="NaN"):
        vqvae.encode(images)
    tokens = [torch.zeros(2, p * p, dtype=torch.long) for p in vqvae.scales]
    for wrong in (128, -1):
        tokens[2][1, 4] = wrong
        with pytest.raises(ConfigError, match=f"token {wrong} at scale 3 .* 127"):
            vqvae.decode(tokens)
        with pytest.raises(ConfigError, match=f"token {wrong} "):
            vqvae.teacher_input(tokens)
    with pytest.raises(ConfigError, match="do not fit the scales"):
        vqvae.decode(tokens[:3])
