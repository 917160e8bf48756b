"""Schedules and parameter groups against the official release's rules."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from uvar_tune.config.schema import TrainingConfig
from uvar_tune.model import preset
from uvar_tune.training import SCHEDULES, parameter_groups, rate_factor
from uvar_tune.training.optim import Average, adamw

STEPS, WARMUP_STEPS, FINAL, BATCH = 101, 20, 0.1, 64


def official(schedule: str, it: int) -> float:
    """The factor of iteration ``it`` of STEPS, written out from the release's formulas."""
    if it < WARMUP_STEPS:
        return 0.005 + 0.995 * it / WARMUP_STEPS
    pasd = (it - WARMUP_STEPS) / (STEPS - 1 - WARMUP_STEPS)
    rest = 1 - pasd
    return {
        "lin0": 1 if pasd < 0.05 else FINAL + (1 - FINAL) * rest / 0.95,
        "lin": 1 if pasd < 0.15 else FINAL + (1 - FINAL) * rest / 0.85,
        "lin00": FINAL + (1 - FINAL) * rest,
        "cos": FINAL + (1 - FINAL) * (0.5 + 0.5 * math.cos(math.pi * pasd)),
        "exp": 1 if pasd < 0.15 else math.exp(math.log(FINAL) * (pasd - 0.15) / 0.85),
    }[schedule]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_are_official(schedule):
    config = TrainingConfig(
        schedule=schedule, images=STEPS * BATCH, batch_size=BATCH, warmup_images=WARMUP_STEPS * BATCH, final_ratio=FINAL
    )
    got = [rate_factor(it * BATCH, config) for it in range(STEPS)]
    assert got == pytest.approx([official(schedule, it) for it in range(STEPS)], rel=1e-12)
    assert got[-1] == pytest.approx(FINAL) and max(got) == 1


def test_single_step_after_warmup_has_the_peak():
    config = TrainingConfig(schedule="cos", images=128, batch_size=64, warmup_images=64, final_ratio=0.1)
    assert rate_factor(64, config) == 1


@pytest.mark.parametrize(
    "name, shared, tensors, numbers",
    [
        ("d16", False, 118, 944_384),
        ("d16", True, 119, 950_528),
        ("d20", False, 146, 1_251_216),
        ("d30", False, 216, 2_143_876),
    ],
)
def test_groups_have_the_official_sizes(name, shared, tensors, numbers):
    sizes = preset(name)
    sizes = dataclasses.replace(sizes, model=sizes.model.model_copy(update={"shared_aln": shared}))
    with torch.device("meta"):
        model = sizes.build_var()
    undecayed, decayed = parameter_groups(model, 0.05)
    assert (undecayed["weight_decay"], decayed["weight_decay"]) == (0.0, 0.05)
    assert len(undecayed["params"]) == tensors
    assert sum(parameter.numel() for parameter in undecayed["params"]) == numbers
    assert len(undecayed["params"]) + len(decayed["params"]) == len(list(model.parameters()))
    assert undecayed["params"][0] is model.pos_start
    undecayed_ids = {id(parameter) for parameter in undecayed["params"]}
    assert not undecayed_ids & {id(p) for p in (model.class_emb.weight, model.word_embed.weight, model.head.weight)}
    assert {id(model.lvl_embed.weight), id(model.pos_1LC), id(model.head.bias)} <= undecayed_ids


def test_step_is_decoupled_weight_decay():
    """Against AdamW written out in float64 over five steps, the vector without decay."""
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Linear(3, 2)
    expected = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    first = {name: torch.zeros_like(value) for name, value in expected.items()}
    second = {name: torch.zeros_like(value) for name, value in expected.items()}
    optimizer = adamw(model, weight_decay=0.05, betas=(0.9, 0.95))
    for step in range(1, 6):
        rate = 0.01 * step
        for name, p in model.named_parameters():
            p.grad = torch.randn(p.shape, generator=generator)
            g = p.grad.double()
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.95 * second[name] + 0.05 * g * g
            decay = 0.05 if name == "weight" else 0.0
            update = (first[name] / (1 - 0.9**step)) / ((second[name] / (1 - 0.95**step)).sqrt() + 1e-8)
            expected[name] = expected[name] * (1 - rate * decay) - rate * update
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach().double(), expected[name], atol=1e-6, rtol=1e-5)


def test_average_halves_the_distance_in_its_half_life():
    model = torch.nn.Linear(2, 1)
    start = model.weight.detach().clone()
    average = Average(model, half_life_images=64, batch_size=16)
    with torch.no_grad():
        model.weight.add_(1)
    for _ in range(4):
        average.update()
    torch.testing.assert_close(average.state()["weight"], start + 0.5)
