"""Agreement with the official implementation on equal weights.

Against golden numbers, and live if the environment variable UVAR_OFFICIAL_VAR names a checkout of FoundationVision/VAR.
"""

from __future__ import annotations

import copy
import json
import os

import pytest
import torch

from tests.helpers import golden_cases as golden
from uvar_tune.config.schema import ModelConfig, TokenizerConfig
from uvar_tune.model import VAR, VQVAE, SamplingSettings, filter_logits, generate, load_official, save_official

RECORDED = json.loads(golden.GOLDEN.read_text())
CHECKOUT = os.environ.get("UVAR_OFFICIAL_VAR")
live = pytest.mark.skipif(not CHECKOUT, reason="UVAR_OFFICIAL_VAR does not name a checkout of FoundationVision/VAR")
PIXELS, LOGITS = 1e-4, 5e-5


def our_vqvae(share: int, seed: str = "vae") -> VQVAE:
    vqvae = VQVAE(
        TokenizerConfig(
            vocab_size=golden.VOCABULARY,
            code_dim=golden.CODE_DIM,
            channels=golden.CHANNELS,
            channel_multipliers=(1, 1, 2, 2, 4),
            scales=golden.SCALES,
            share_quant_resi=share,
        )
    )
    shapes = {key: value.shape for key, value in vqvae.state_dict().items() if "ema_vocab" not in key}
    vqvae.load_state_dict({**vqvae.state_dict(), **golden.weights(shapes, seed)})
    return vqvae.eval().requires_grad_(False)


def our_var(name: str, seed: str = "var") -> VAR:
    var = VAR(
        ModelConfig(depth=golden.DEPTH, width=golden.WIDTH, heads=golden.HEADS, **golden.VAR_CASES[name]),
        scales=golden.SCALES,
        vocab_size=golden.VOCABULARY,
        code_dim=golden.CODE_DIM,
        num_classes=golden.CLASSES,
    )
    var.load_state_dict(golden.weights({key: value.shape for key, value in var.state_dict().items()}, seed))
    return var.eval().requires_grad_(False)


def near(values: torch.Tensor, recorded: list[float], tolerance: float) -> bool:
    actual = torch.tensor(golden.sampled(values, len(recorded)))
    return float((actual - torch.tensor(recorded)).abs().max()) < tolerance


@pytest.fixture(scope="module")
def shared_vqvae():
    return our_vqvae(4)


@pytest.mark.parametrize("share", golden.SHARES)
def test_tokenizer_gives_the_recorded_numbers(share):
    vqvae, recorded = our_vqvae(share), RECORDED["tokenizer"][str(share)]
    tokens, teacher_input = vqvae.encode(golden.images(2), with_teacher_input=True)
    assert torch.cat(tokens, 1).tolist() == recorded["tokens"]
    assert near(teacher_input, recorded["teacher_input"], 1e-5)
    assert near(vqvae.decode(tokens), recorded["pixels"], PIXELS)
    with torch.no_grad():
        loss = vqvae(golden.images(2))[1]
    assert float(loss) == pytest.approx(recorded["vq_loss"], rel=1e-5)


@pytest.mark.parametrize("name", golden.VAR_CASES)
def test_transformer_gives_the_recorded_numbers(name, shared_vqvae):
    var, recorded = our_var(name), RECORDED["var"][name]
    teacher_input = shared_vqvae.teacher_input(golden.tokens_of("teacher", len(golden.LABELS)))
    assert near(var(torch.tensor(golden.LABELS), teacher_input), recorded["logits"], LOGITS)
    for cfg_scale, greedy in recorded["greedy"].items():
        images, tokens = generate(
            var,
            shared_vqvae,
            golden.LABELS,
            SamplingSettings(cfg_scale=float(cfg_scale), top_k=1),
            chunk=len(golden.LABELS),
        )
        assert torch.cat(tokens, 1).tolist() == greedy["tokens"], cfg_scale
        assert near(images, greedy["pixels"], PIXELS), cfg_scale


@live
@pytest.mark.parametrize("seed", ["a", "b", "c"])
@pytest.mark.parametrize("share", golden.SHARES)
def test_tokenizer_agrees_live(share, seed):
    theirs = golden.official_vqvae(CHECKOUT, share, seed)
    ours, nothing = load_official(theirs.state_dict(), scales=golden.SCALES)
    images = golden.images(4)
    expected = theirs.img_to_idxBl(images)
    tokens, teacher_input = ours.encode(images, with_teacher_input=True)
    assert nothing is None and all(torch.equal(a, b) for a, b in zip(tokens, expected, strict=True))
    assert torch.allclose(teacher_input, theirs.quantize.idxBl_to_var_input(expected), rtol=0, atol=1e-5)
    pixels = theirs.idxBl_to_img(expected, same_shape=True, last_one=True)
    difference = float((ours.decode(tokens) - pixels).abs().max())
    print(f"share {share} seed {seed}: pixels differ by {difference:.1e}")
    assert difference < PIXELS


@live
@pytest.mark.parametrize("seed", ["a", "b"])
@pytest.mark.parametrize("name", golden.VAR_CASES)
@torch.no_grad()
def test_transformer_agrees_live(name, seed, tmp_path):
    their_vqvae = golden.official_vqvae(CHECKOUT, 4, seed)
    theirs = golden.official_var(CHECKOUT, their_vqvae, seed, **golden.VAR_CASES[name])
    vqvae, var = load_official(their_vqvae.state_dict(), theirs.state_dict(), num_heads=golden.HEADS)
    teacher_input = vqvae.teacher_input(golden.tokens_of(seed, 3))
    labels = torch.tensor(golden.LABELS)
    expected = theirs(labels, teacher_input)
    difference = float((var(labels, teacher_input) - expected).abs().max())
    print(f"{name} seed {seed}: logits of std {expected.std():.2f} differ by {difference:.1e}")
    assert difference < LOGITS
    for cfg_scale in golden.CFG_SCALES:
        pictures, tokens = golden.official_greedy(theirs, their_vqvae, golden.LABELS, cfg_scale)
        images, actual = generate(var, vqvae, labels, SamplingSettings(cfg_scale=cfg_scale, top_k=1), chunk=3)
        assert all(torch.equal(a, b) for a, b in zip(actual, tokens, strict=True)), cfg_scale
        assert torch.allclose(images, pictures, rtol=0, atol=PIXELS)
    vae_state, var_state = save_official(vqvae, var)
    theirs.load_state_dict(var_state, strict=True)
    copy.deepcopy(their_vqvae).load_state_dict(vae_state, strict=True)


@live
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.0), (1, 0.0), (900, 0.0), (0, 0.95), (900, 0.96), (50, 0.3)])
def test_filter_agrees_live(top_k, top_p):
    _, _, helpers = golden.import_official(CHECKOUT)
    logits = 3 * torch.from_numpy(golden.normal("filter", (2, 30, 1024)))
    theirs = logits.clone()
    helpers.sample_with_top_k_top_p_(theirs, top_k=top_k, top_p=top_p)
    assert torch.equal(filter_logits(logits, top_k, top_p), theirs)


@live
def test_training_loss_agrees_live(shared_vqvae):
    """A few AdamW steps on the same batches: the losses agree to 1e-3."""
    losses = {}
    tokens, labels = golden.tokens_of("steps", 4), torch.tensor([1, 5, 0, 7])
    teacher_input = shared_vqvae.teacher_input(tokens)
    their_vqvae = golden.official_vqvae(CHECKOUT, 4)
    theirs = golden.official_var(CHECKOUT, their_vqvae, **golden.VAR_CASES["own-l2"])
    for side, model in {"theirs": theirs, "ours": our_var("own-l2").requires_grad_(True)}.items():
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05)
        losses[side] = []
        for _ in range(6):
            logits = model(labels, teacher_input)
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.cat(tokens, 1).flatten())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses[side].append(float(loss.detach()))
    print(losses)
    assert losses["ours"][-1] < losses["ours"][0]
    assert losses["ours"] == pytest.approx(losses["theirs"], rel=1e-3)
