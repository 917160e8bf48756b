import math

import pytest
import torch

from uvar_tune.config.schema import LossConfig
from uvar_tune.evaluation.scorecard import scorecard


def test_scorecard_of_uniform_predictions(networks, held_out):
    """At the anchor of `embedding`: entropy ln V, relative dispersion 1, semantic entropy that of the class sizes."""
    var, vqvae = networks
    var.head.weight.data.zero_()
    var.head.bias.data.zero_()
    classes = torch.tensor([0] * 12 + [1] * 6 + [2] * 6)
    codes = vqvae.codebook_VC.detach().double()
    anchor = float((codes - codes.mean(0)).square().sum(1).mean())
    got = scorecard(
        var,
        vqvae,
        *held_out,
        loss=LossConfig(),
        classes_V=classes,
        reference_variance_K=[anchor, anchor / 4, anchor / 4],
        chunk=4,
    )
    for suffix in ("", "/scale_1", "/scale_2", "/scale_3"):
        assert got[f"entropy{suffix}"] == pytest.approx(math.log(24), rel=1e-5)
        assert got[f"dispersion{suffix}"] == pytest.approx(1.0, rel=1e-5)
        assert got[f"semantic_entropy{suffix}"] == pytest.approx(1.5 * math.log(2), rel=1e-5)
    assert got["dispersion_reference/scale_1"] == pytest.approx(1.0)
    assert got["dispersion_ratio/scale_1"] == pytest.approx(1.0, rel=1e-5)
    assert got["dispersion_ratio/scale_3"] == pytest.approx(2.0, rel=1e-5)
    assert got["dispersion_reference"] == pytest.approx((1 + 20 / 4) / 21)


def test_scorecard_equals_a_naive_loop(networks, held_out):
    from uvar_tune.model.scales import split

    var, vqvae = networks
    tokens_NL, labels_N = held_out
    classes = torch.arange(24) % 3
    var.eval()
    with torch.no_grad():
        p_NLV = var(labels_N, vqvae.teacher_input(split(tokens_NL, (1, 2, 4)))).double().softmax(-1)
    codes = vqvae.codebook_VC.detach().double()
    mean_NLC = p_NLV @ codes
    spread_NLV = (codes - mean_NLC[:, :, None]).square().sum(-1)
    mass_NLG = torch.stack([p_NLV[..., classes == g].sum(-1) for g in range(3)], -1)
    expected = {
        "dispersion": (p_NLV * spread_NLV).sum(-1),
        "entropy": -(p_NLV * p_NLV.log()).sum(-1),
        "semantic_entropy": -(mass_NLG * mass_NLG.log()).sum(-1),
    }
    got = scorecard(
        var,
        vqvae,
        tokens_NL,
        labels_N,
        classes_V=classes,
        reference_variance_K=[0.0, 1.0, 1.0],
        loss=LossConfig(normalize="none"),
        chunk=4,
    )
    for name, values_NL in expected.items():
        assert got[name] == pytest.approx(float(values_NL.mean()), rel=1e-5)
        assert got[f"{name}/scale_2"] == pytest.approx(float(values_NL[:, 1:5].mean()), rel=1e-5)
    assert "dispersion_ratio/scale_1" not in got and got["dispersion_reference/scale_2"] == 1.0


def test_discrepancy_is_unweighted(networks, held_out):
    """At uniform predictions the relative dispersion is 1 everywhere, so each scale's d(1, b) is a number known beforehand."""
    var, vqvae = networks
    var.head.weight.data.zero_()
    var.head.bias.data.zero_()
    codes = vqvae.codebook_VC.detach().double()
    anchor = float((codes - codes.mean(0)).square().sum(1).mean())
    ratio = (1 + 0.2 * 0.25) / (0.25 * 1.2)
    expected = {"wasserstein": 0.25, "squared": 0.5625, "kl": 0.5 * (ratio - 1 - math.log(ratio))}
    for discrepancy, value in expected.items():
        got = scorecard(
            var,
            vqvae,
            *held_out,
            classes_V=torch.arange(24) % 3,
            chunk=4,
            loss=LossConfig(discrepancy=discrepancy, kl_smoothing=0.2),
            reference_variance_K=[anchor, anchor / 4, anchor / 4],
        )
        assert got["second_order/scale_1"] == pytest.approx(0.0, abs=1e-9)
        assert got["second_order/scale_3"] == pytest.approx(value, rel=1e-5)
        assert got["second_order"] == pytest.approx(20 * value / 21, rel=1e-5)
