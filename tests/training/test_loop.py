"""The loop on one rank: events, averages, refusal of what cannot be honoured, divergence."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.helpers.trainee import IMAGES, loss_with, networks, settings, tokens
from uvar_tune.config.schema import ModelConfig
from uvar_tune.errors import ConfigError, Diverged
from uvar_tune.training import CheckpointEvent, Progress, resolve_precision, train


def training(var=None, loss=None, start=None, stop=None, **changes):
    default, vqvae = networks()
    model = default if var is None else var
    return train(model, vqvae, tokens(), loss or loss_with(vqvae), *settings(**changes), start=start, stop=stop)


def test_events_of_a_training():
    events = list(training())
    assert [e.images for e in events if isinstance(e, Progress)] == [32, 64, 96, 128, 160, 192]
    assert [e.images for e in events if isinstance(e, CheckpointEvent)] == [48, 96, 144, 192]
    assert [type(e) for e in events[-2:]] == [Progress, CheckpointEvent]
    values = events[0].values
    assert values["loss/total"] == pytest.approx(
        values["loss/ce"] + 0.5 * values["loss/second_order"] + 0.1 * values["loss/semantic_entropy"], rel=1e-5
    )
    assert values["images_per_sec"] > 0 and values["grad_norm"] > 0
    assert values["learning_rate"] == pytest.approx(3e-3 * (0.005 + 0.995 * 16 / 40))  # of the second step


def test_last_events_when_end_is_no_multiple():
    events = list(training(log_images=80, checkpoint_images=128))
    assert [e.images for e in events if isinstance(e, Progress)] == [80, 160, 192]
    assert [e.images for e in events if isinstance(e, CheckpointEvent)] == [128, 192]


def test_further_checkpoints_change_no_numbers():
    plain, more = list(training()), list(training(also_at=(80,)))
    assert [e.images for e in more if isinstance(e, CheckpointEvent)] == [48, 80, 96, 144, 192]
    curves = [
        [{**e.values, "images_per_sec": 0} for e in events if isinstance(e, Progress)] for events in (plain, more)
    ]
    assert curves[0] == curves[1]


def test_stop_ends_with_a_checkpoint():
    requested = iter([False] * 6 + [True] * 9)
    events = list(training(stop=lambda: next(requested)))
    assert [(type(e), e.images) for e in events[-2:]] == [(CheckpointEvent, 96), (CheckpointEvent, 112)]
    assert [e.images for e in events if isinstance(e, Progress)] == [32, 64, 96]


def test_progress_averages_over_steps():
    fine = [e.values["loss/ce"] for e in training(log_images=16) if isinstance(e, Progress)]
    coarse = [e.values["loss/ce"] for e in training(log_images=96) if isinstance(e, Progress)]
    assert coarse == pytest.approx([sum(fine[:6]) / 6, sum(fine[6:]) / 6], rel=1e-12)


def test_eval_mode_between_events():
    """Eval mode left on by the caller changes nothing."""

    def end(meddle: bool):
        var = networks()[0]
        for _ in training(var):
            if meddle:
                var.eval()
        return var.state_dict()

    undisturbed, disturbed = end(False), end(True)
    assert all(torch.equal(value, disturbed[name]) for name, value in undisturbed.items())


def test_average_follows_formula_and_resumes():
    var, keep, expected = networks()[0], 0.5 ** (16 / 40), None
    states = {}
    start = {name: p.detach().double().clone() for name, p in var.named_parameters()}
    for event in training(var, ema=40, checkpoint_images=16):
        if isinstance(event, CheckpointEvent):
            now = {name: p.detach().double() for name, p in var.named_parameters()}
            expected = {name: keep * (expected or start)[name] + (1 - keep) * now[name] for name in now}
            states[event.images] = copy.deepcopy({"var": var.state_dict(), "start": event.state()})
    average = states[192]["start"]["ema"]
    for name, value in expected.items():
        torch.testing.assert_close(average[name].double(), value, atol=1e-6, rtol=1e-5)
    resumed = networks()[0]
    resumed.load_state_dict(states[96]["var"])
    last = [e for e in training(resumed, ema=40, checkpoint_images=16, start=states[96]["start"])][-1].state()
    assert all(torch.equal(last["ema"][name], value) for name, value in average.items())
    assert set(average) == set(resumed.state_dict())


def test_activation_checkpointing_keeps_the_bits():
    var, plain = networks()[0], networks()[0]
    var.activation_checkpointing = True
    curves = [[e.values["loss/total"] for e in training(model) if isinstance(e, Progress)] for model in (var, plain)]
    assert curves[0] == curves[1]
    assert all(torch.equal(p, plain.state_dict()[name]) for name, p in var.state_dict().items())


@pytest.mark.slow
def test_compiled_forward_gives_the_same_curve():
    curves = [
        [e.values["loss/total"] for e in training(compile=compiled) if isinstance(e, Progress)]
        for compiled in (False, True)
    ]
    assert curves[1] == pytest.approx(curves[0], rel=1e-3)


def test_reported_norm_is_before_clipping():
    norms = {}
    for clip in (None, 1e-3):
        norms[clip] = [e.values["grad_norm"] for e in training(clip=clip, log_images=16) if isinstance(e, Progress)]
    assert norms[None][0] == norms[1e-3][0] > 0.1
    assert norms[None] != norms[1e-3]


def test_nan_loss_diverges():
    vqvae = networks()[1]
    with pytest.raises(Diverged, match="not a finite number") as failure:
        list(training(loss=loss_with(vqvae, diverges=True)))
    assert failure.value.images == 64


def test_infinite_gradient_diverges():
    """A finite loss with an infinite gradient in the fourth step; nothing is read before the checkpoint of 96."""
    inner, calls, due = loss_with(networks()[1]), 0, []

    def loss(model, vqvae, tokens_BL, labels_B, noise):
        nonlocal calls
        calls += 1
        terms = inner(model, vqvae, tokens_BL, labels_B, noise)
        zero = (model.head.bias.sum() * 0).abs()
        return type(terms)(terms.total + (zero.sqrt() if calls == 4 else zero), *list(vars(terms).values())[1:])

    with pytest.raises(Diverged, match="grad_norm") as failure:
        for event in training(loss=loss, log_images=192, checkpoint_images=96):
            due.append(event)
    assert failure.value.images == 48 and due == []


BAD = [
    ({"images": 200}, "training.images 200 .* 16; the nearest: 192 or 208"),
    ({"images": 8}, "warmup_images|nearest: 16"),
    ({"accumulate": 3}, "batch_size 16 .* 3; the nearest: 15 or 18"),
    ({"accumulate": 2, "world_size": 16}, "batch size 16 .* 32"),
    ({"batch_size": 48, "images": 192}, f"{IMAGES} images are fewer than a batch of 48"),
    ({"warmup_images": 192}, "warmup_images 192 must be below training.images 192"),
    ({"precision": "bf16"}, "bf16 needs a GPU"),
    ({"log_images": 24}, "log_images: 24 is not a multiple of the batch 16; did you mean '32'|did you mean '16'"),
    ({"checkpoint_images": 0}, "checkpoint_images: 0 is not a multiple"),
    ({"also_at": (48, 50)}, "50 is not a multiple of the batch 16; did you mean '48'"),
    ({"rank": 1}, "rank 1 of 1"),
]


@pytest.mark.parametrize(
    "changes, message", BAD, ids=[", ".join(changes) + str(i) for i, (changes, _) in enumerate(BAD)]
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        training(**changes)


def test_precision_of_a_cpu():
    assert resolve_precision("auto", torch.device("cpu")) == resolve_precision("fp32", torch.device("cpu")) == "fp32"


def test_resume_shows_changed_settings():
    state = next(e for e in training() if isinstance(e, CheckpointEvent)).state()
    with pytest.raises(ConfigError) as refused:
        training(start=state, learning_rate=1e-3, schedule="cos", seed=12)
    for part in (
        "learning_rate was 0.003, now 0.001",
        "schedule was 'lin0', now 'cos'",
        "seed was 11, now 12",
        "48 images",
    ):
        assert part in str(refused.value)
    assert "betas" not in str(refused.value)


def test_model_and_cache_must_fit():
    from uvar_tune.model import VAR

    other = VAR(ModelConfig(depth=1, width=16, heads=2), scales=(1, 2), vocab_size=24, code_dim=8, num_classes=4)
    with pytest.raises(ConfigError, match=r"scales \[1, 2, 4\]"):
        training(other)
    few = VAR(ModelConfig(depth=1, width=16, heads=2), scales=(1, 2, 4), vocab_size=24, code_dim=8, num_classes=2)
    with pytest.raises(ConfigError, match="label 3 for a model of 2 classes"):
        training(few)
