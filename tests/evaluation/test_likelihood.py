import math

import pytest
import torch

from uvar_tune.errors import ConfigError, Diverged
from uvar_tune.evaluation.calibration import temperature_grid
from uvar_tune.evaluation.likelihood import (
    class_log_likelihoods,
    evaluating,
    likelihood,
    tempered_nll,
    token_metrics,
    token_scores,
)
from uvar_tune.model.scales import boundaries, split

SCALES = (1, 2, 4)


def naive_log_p(var, vqvae, tokens_NL, labels_N):
    """log_p_NLV in float64, image by image."""
    var.eval()
    with torch.no_grad():
        rows = [
            var(label[None], vqvae.teacher_input(split(tokens[None], SCALES)))[0]
            for tokens, label in zip(tokens_NL, labels_N, strict=True)
        ]
    return torch.stack(rows).double().log_softmax(-1)


def test_token_scores_equal_a_naive_loop(networks, held_out):
    tokens_NL, labels_N = held_out
    log_p_NLV = naive_log_p(*networks, tokens_NL, labels_N)
    got = token_scores(*networks, tokens_NL, labels_N, chunk=4)
    torch.testing.assert_close(got.nll_NL, -log_p_NLV.gather(-1, tokens_NL[..., None])[..., 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got.confidence_NL.double(), log_p_NLV.amax(-1).exp(), atol=1e-5, rtol=1e-5)
    assert torch.equal(got.correct_NL, log_p_NLV.argmax(-1) == tokens_NL)
    numbers = token_metrics(got, SCALES)
    assert numbers["nll_image"] == pytest.approx(21 * numbers["nll_token"])
    parts = [numbers[f"nll_token/scale_{k}"] for k in (1, 2, 3)]
    assert (parts[0] + 4 * parts[1] + 16 * parts[2]) / 21 == pytest.approx(numbers["nll_token"])


def test_class_likelihoods_sum_over_tokens(networks, held_out):
    tokens_NL, labels_N = held_out
    got = class_log_likelihoods(*networks, tokens_NL, chunk=4)
    assert got.shape == (11, 4)
    nll_NL = token_scores(*networks, tokens_NL, labels_N, chunk=4).nll_NL
    torch.testing.assert_close(got.gather(1, labels_N[:, None])[:, 0], -nll_NL.sum(1), atol=1e-4, rtol=1e-6)


def test_labels_are_kept_and_modes_restored(networks, held_out):
    var, vqvae = networks
    var.train(), vqvae.train()
    state = torch.get_rng_state()
    first, second = (token_scores(var, vqvae, *held_out).nll_NL for _ in range(2))
    assert torch.equal(first, second) and torch.equal(state, torch.get_rng_state())
    assert var.training and vqvae.training
    with pytest.raises(KeyError), evaluating(var):
        raise KeyError
    assert var.training


def test_shares_of_ranks_concatenate(networks, held_out):
    tokens_NL, labels_N = held_out
    whole = class_log_likelihoods(*networks, tokens_NL, chunk=4)
    parts = [class_log_likelihoods(*networks, tokens_NL[rank::2], chunk=4) for rank in range(2)]
    for rank in range(2):
        torch.testing.assert_close(parts[rank], whole[rank::2], atol=1e-6, rtol=1e-6)


def test_tempered_nll_agrees_with_scores(networks, held_out):
    grid = temperature_grid(count=9)
    nll_NT = tempered_nll(*networks, *held_out, temperatures_T=grid, chunk=4)
    for t in (0, 4, 6):
        direct = token_scores(*networks, *held_out, temperature=float(grid[t]), chunk=4).nll_NL.mean(1)
        torch.testing.assert_close(nll_NT[:, t], direct, atol=1e-5, rtol=1e-5)


def drawn_from(var, vqvae, labels_N):
    """tokens_NL sampled from the VAR scale by scale at temperature 1."""
    generator, tokens_NL = torch.Generator().manual_seed(0), torch.zeros(len(labels_N), 21, dtype=torch.long)
    with evaluating(var, vqvae):
        for start, end in boundaries(SCALES):
            p_NLV = var(labels_N, vqvae.teacher_input(split(tokens_NL, SCALES)))[:, start:end].softmax(-1)
            tokens_NL[:, start:end] = torch.multinomial(p_NLV.flatten(0, 1), 1, generator=generator).view(
                len(labels_N), -1
            )
    return tokens_NL


def test_best_temperature_undoes_a_scaled_head(networks):
    var, vqvae = networks
    labels_N = torch.arange(400) % 4
    tokens_NL = drawn_from(var, vqvae, labels_N)
    before = likelihood(var, vqvae, tokens_NL, labels_N, chunk=200)
    var.head.weight.data *= 2.5
    var.head.bias.data *= 2.5
    after = likelihood(var, vqvae, tokens_NL, labels_N, chunk=200)
    assert before["temperature_token"] == pytest.approx(1.0, abs=0.03)  # a calibrated model
    assert after["temperature_token"] == pytest.approx(2.5 * before["temperature_token"], rel=1e-3)
    for name in ("nll_token_tempered", "ece_token_tempered"):
        assert after[name] == pytest.approx(before[name], abs=1e-4)
    assert after["nll_token"] > before["nll_token"] + 0.1 and after["ece_token"] > before["ece_token"] + 0.05


def test_tempering_never_raises_nll(networks, held_out):
    calls = []
    got = likelihood(*networks, *held_out, chunk=4, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(4, 11), (8, 11), (11, 11)]
    assert set(got) == {
        "nll_token",
        "nll_image",
        "ece_token",
        "nll_token_tempered",
        "ece_token_tempered",
        "temperature_token",
        "accuracy",
        "nll_class",
        "ece_class",
        "nll_class_tempered",
        "ece_class_tempered",
        "temperature_class",
        "nll_token/scale_1",
        "nll_token/scale_2",
        "nll_token/scale_3",
    }
    assert got["nll_token_tempered"] <= got["nll_token"] and got["nll_class_tempered"] <= got["nll_class"]
    assert all(math.isfinite(value) for value in got.values())


def test_unusable_tokens_and_networks_are_refused(networks, held_out):
    var, vqvae = networks
    tokens_NL, labels_N = held_out
    with pytest.raises(ConfigError, match=r"tokens of shape \(11, 20\) do not fit a VAR of 21 positions"):
        likelihood(var, vqvae, tokens_NL[:, :20], labels_N)
    with pytest.raises(ConfigError, match="outside the VAR's vocabulary"):
        likelihood(var, vqvae, tokens_NL + 1000, labels_N)
    var.head.bias.data[0] = float("nan")
    with pytest.raises(Diverged, match="not finite"):
        likelihood(var, vqvae, tokens_NL, labels_N)
    with pytest.raises(Diverged, match="not finite"):
        class_log_likelihoods(var, vqvae, tokens_NL)
