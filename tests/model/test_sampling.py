"""Sampling: distribution, independence of count and chunk, guidance, filters, errors."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from uvar_tune.cli import options
from uvar_tune.config.schema import SAMPLING_BOUNDS
from uvar_tune.errors import ConfigError
from uvar_tune.model import CFG_CONVENTION, SamplingSettings, filter_logits, generate
from uvar_tune.model.filtering import draw, guidance
from uvar_tune.model.sampling import as_option, uniform_noise
from uvar_tune.model.scales import boundaries, concat, split

SETTINGS = SamplingSettings(cfg_scale=1.5, top_k=50, top_p=0.9)


def naive_filter(logits, top_k, top_p):
    """One row, in float64."""
    kept = np.ones(len(logits), dtype=bool)
    if top_k:
        kept &= logits >= np.sort(logits)[-top_k]
    if top_p:
        weight = np.where(kept, np.exp(logits - logits.max()), 0)
        order, total = np.argsort(weight, kind="stable"), 0.0
        for i in order[:-1]:
            total += weight[i] / weight.sum()
            kept[i] &= total > 1 - top_p
    return kept


@pytest.mark.parametrize(
    ("top_k", "top_p"), [(0, 0.0), (1, 0.0), (7, 0.0), (64, 0.0), (0, 0.8), (7, 0.8), (20, 0.31), (0, 1e-9), (64, 1.0)]
)
def test_filter_equals_naive_filter(top_k, top_p):
    logits = torch.randn(40, 64, generator=torch.Generator().manual_seed(0)) * 2
    actual = filter_logits(logits, top_k, top_p)
    for row, filtered in zip(logits, actual, strict=True):
        kept = naive_filter(row.double().numpy(), top_k, top_p)
        assert (torch.isfinite(filtered).numpy() == kept).all()
        assert torch.equal(filtered[torch.from_numpy(kept)], row[torch.from_numpy(kept)])


def test_equal_logits_are_kept_or_removed_together():
    logits = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]])
    assert torch.isfinite(filter_logits(logits, 2)).tolist() == [[True, True, True, True, False]]
    best = float(logits[0, :4].softmax(0)[0])
    third = (1 - best) / 3
    for removed_mass, kept in ((3 * third - 0.01, 4), (3 * third + 0.01, 1)):
        assert int(torch.isfinite(filter_logits(logits, 2, 1 - removed_mass)).sum()) == kept


def test_draw_inverts_the_cumulative_distribution():
    logits = torch.log(torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0]))
    uniform = torch.tensor([0.0, 0.1, 0.2499, 0.2501, 0.7, 0.7501, 1 - 2**-24])
    assert draw(logits.expand(1, 7, 6), uniform[None])[0].tolist() == [1, 1, 1, 3, 3, 4, 4]


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.0), (1, 0.0), (7, 0.0), (0, 0.8), (40, 0.5)])
def test_draw_takes_only_what_the_filter_keeps(top_k, top_p):
    generator = torch.Generator().manual_seed(2)
    logits, uniform = 2 * torch.randn(3, 500, 64, generator=generator), torch.rand(3, 500, generator=generator)
    actual = draw(logits, uniform, top_k, top_p)
    assert torch.equal(actual, draw(filter_logits(logits, top_k, top_p), uniform))
    assert torch.isfinite(filter_logits(logits, top_k, top_p).gather(-1, actual[..., None])).all()


def test_no_impossible_token_is_drawn_at_the_end():
    logits = torch.randn(2000, 300, generator=torch.Generator().manual_seed(1))
    logits[:, -100:] = -torch.inf
    actual = draw(logits[None], torch.full((1, 2000), 1 - 2**-24))
    assert int(actual.max()) < 200


def test_tokens_follow_the_models_distribution(var, vqvae):
    """Frequencies of the first token over many seeds match the logits (chi-square, 5 standard deviations)."""
    count = 4000
    logits = var(torch.tensor([3]), torch.zeros(1, 29, 16))[:, :1].detach()
    first = draw(
        logits.expand(1, count, -1), torch.stack([uniform_noise(seed, var.scales)[0] for seed in range(count)])[None]
    )[0]
    _, tokens = generate(var, vqvae, [3] * 20, SamplingSettings(cfg_scale=0), seeds=range(20))
    assert torch.equal(tokens[0][:, 0], first[:20])
    expected = logits[0, 0].softmax(-1) * count
    often = expected > 5
    chi = float(((first.bincount(minlength=128) - expected).square() / expected)[often].sum())
    freedom = int(often.sum()) - 1
    assert freedom > 10 and abs(chi - freedom) < 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("cfg_scale", [0.0, 1.5])
def test_tokens_do_not_depend_on_count_order_or_rank(var, vqvae, cfg_scale):
    settings = dataclasses.replace(SETTINGS, cfg_scale=cfg_scale)
    labels, seeds = [i % 10 for i in range(32)], [1000 + i for i in range(32)]
    images, tokens = generate(var, vqvae, labels, settings, seeds=seeds)
    for count in (1, 7):
        some_images, some = generate(var, vqvae, labels[:count], settings, seeds=seeds[:count])
        assert torch.equal(concat(some), concat(tokens)[:count]) and torch.equal(some_images, images[:count])
    shares = [generate(var, vqvae, labels[rank::2], settings, seeds=seeds[rank::2])[1] for rank in (0, 1)]
    assert all(torch.equal(concat(shares[rank]), concat(tokens)[rank::2]) for rank in (0, 1))
    assert len(torch.unique(concat(tokens), dim=0)) == 32


def test_greedy_sampling_takes_the_argmax(var, vqvae):
    images, tokens = generate(var, vqvae, range(10), SamplingSettings(cfg_scale=0, top_k=1))
    logits = var(torch.arange(10), vqvae.teacher_input(tokens))
    assert torch.equal(logits.argmax(-1), concat(tokens))
    assert torch.allclose(images, vqvae.decode(tokens) / 2 + 0.5, atol=1e-4)


@pytest.mark.parametrize(
    ("ramp", "strengths"), [(0.0, [3.0, 3.0, 3.0, 3.0]), (1.0, [0.0, 1.0, 2.0, 3.0]), (2.0, [0.0, 1 / 3, 4 / 3, 3.0])]
)
def test_guidance_is_that_of_the_logits(var, vqvae, ramp, strengths):
    """Guidance on the input of the head gives the same tokens as on the logits, teacher-forced with both labels."""
    labels = torch.arange(10)
    _, tokens = generate(var, vqvae, labels, SamplingSettings(cfg_scale=3.0, cfg_ramp=ramp, top_k=1))
    teacher_input = vqvae.teacher_input(tokens)
    conditional, unconditional = var(labels, teacher_input), var(torch.full_like(labels, 10), teacher_input)
    for k, ((start, end), t) in enumerate(zip(boundaries(var.scales), strengths, strict=True)):
        logits = (1 + t) * conditional[:, start:end] - t * unconditional[:, start:end]
        assert torch.equal(logits.argmax(-1), tokens[k])
    assert [guidance(3.0, k, 4, ramp) for k in range(4)] == pytest.approx(strengths)


def test_guidance_convention_is_documented(var, vqvae):
    assert "t_k = cfg*(k/(K-1))^ramp" in CFG_CONVENTION
    assert guidance(2.0, 0, 1) == guidance(2.0, 0, 1, 0.5) == 2.0
    as_var, given = (
        generate(var, vqvae, [3] * 4, SamplingSettings(cfg_scale=2.0, **ramp), seeds=range(4)).images
        for ramp in ({}, {"cfg_ramp": 1.0})
    )
    assert torch.equal(as_var, given)
    assert not torch.equal(
        as_var, generate(var, vqvae, [3] * 4, SamplingSettings(cfg_scale=2.0, cfg_ramp=0.0), seeds=range(4)).images
    )


def test_temperature_divides_the_logits(var, vqvae):
    cold = generate(var, vqvae, range(10), SamplingSettings(cfg_scale=0, temperature=1e-4), seeds=range(10))[1]
    greedy = generate(var, vqvae, range(10), SamplingSettings(cfg_scale=0, top_k=1))[1]
    assert torch.equal(concat(cold), concat(greedy))


def test_sampling_works_at_its_bounds(var, vqvae):
    for corner in itertools.product(*([(name, end) for end in ends] for name, ends in SAMPLING_BOUNDS.items())):
        images, _ = generate(var, vqvae, [3, 4], SamplingSettings(**dict(corner)), seeds=[0, 1])
        assert torch.isfinite(images).all()


def test_options_take_what_the_model_takes():
    shared = {"cfg_scale": options.CfgScale, "cfg_ramp": options.CfgRamp, "temperature": options.Temperature}
    bounds = {name: (one.__metadata__[0].min, one.__metadata__[0].max) for name, one in shared.items()}
    assert bounds == SAMPLING_BOUNDS
    with pytest.raises(ConfigError, match="^--top-k: 9 is not in 0 … 8"):
        SamplingSettings(1.0, top_k=9).validate(8, as_option)


class Interrupted(Exception):
    pass


def test_exception_leaves_the_model_usable(var, vqvae):
    teacher_input = vqvae.teacher_input(split(torch.zeros(2, 30, dtype=torch.long), var.scales))
    before, calls = var(torch.tensor([1, 2]), teacher_input), []

    def stop(module, args):
        calls.append(1)
        if len(calls) == 6:  # two blocks per scale: in the third scale
            raise Interrupted

    hooks = [block.ffn.register_forward_pre_hook(stop) for block in var.blocks]
    with pytest.raises(Interrupted):
        generate(var, vqvae, [1, 2], SETTINGS)
    for hook in hooks:
        hook.remove()
    assert torch.equal(var(torch.tensor([1, 2]), teacher_input), before)


def test_progress_counts_images(var, vqvae):
    seen = []
    generate(
        var,
        vqvae,
        [0] * 7,
        SamplingSettings(cfg_scale=0),
        chunk=3,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(3, 7), (6, 7), (7, 7)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"labels_B": [0, 11]}, "label 11 is not one of 0 … 9"),
        ({"labels_B": [-1]}, "label -1"),
        ({"labels_B": [0.5]}, "expected .B,. integers"),
        ({"labels_B": []}, "labels of shape"),
        ({"cfg_scale": -0.1}, "cfg_scale: -0.1 is not in 0 … 100 .*'0'"),
        ({"cfg_scale": float("nan")}, "cfg_scale: nan"),
        ({"cfg_scale": 1e308}, "cfg_scale: 1e[+]308 .*'100'"),
        ({"cfg_scale": float("inf")}, "cfg_scale: inf"),
        ({"cfg_ramp": -0.5}, "cfg_ramp: -0.5 is not in"),
        ({"cfg_ramp": float("inf")}, "cfg_ramp: inf"),
        ({"top_k": 129}, "top_k: 129 is not in 0 … 128.*'128'"),
        ({"top_k": -1}, "top_k: -1"),
        ({"top_p": 1.5}, "top_p: 1.5"),
        ({"temperature": 0.0}, "temperature: 0.0"),
        ({"temperature": 1e-300}, "temperature: 1e-300 .*'0.0001'"),
        ({"seeds": [1, 2]}, "2 seeds for 3 labels"),
        ({"chunk": 0}, "chunk 0"),
    ],
)
def test_bad_requests_are_refused(var, vqvae, wrong, message):
    with pytest.raises(ConfigError, match=message):
        request = {"labels_B": [0, 1, 2], "cfg_scale": 1.0, **wrong}
        settings = {name: request.pop(name) for name in list(request) if hasattr(SETTINGS, name)}
        generate(var, vqvae, settings=SamplingSettings(**settings), **request)
