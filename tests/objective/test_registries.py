"""The registries: what the configuration offers is what they hold, and the examples of their docstrings work."""

from __future__ import annotations

import typing

import pytest
import torch

from tests.helpers.objective_cases import problem, reference, settings_of
from uvar_tune.config.schema import LossConfig
from uvar_tune.objective import (
    DISCREPANCIES,
    DISPERSIONS,
    FIRST_ORDER,
    NORMALIZATIONS,
    PARTITIONS,
    REFERENCES,
    composite_loss,
)
from uvar_tune.objective.dispersion import Dispersion


@pytest.mark.parametrize(
    "key, registry",
    [
        ("reference", REFERENCES),
        ("dispersion", DISPERSIONS),
        ("discrepancy", DISCREPANCIES),
        ("normalize", NORMALIZATIONS),
        ("partition", PARTITIONS),
        ("first_order", FIRST_ORDER),
    ],
)
def test_config_offers_the_registry(key, registry):
    assert set(typing.get_args(LossConfig.model_fields[key].annotation)) == set(registry)


def terms(case, **settings):
    logits = torch.tensor(case["logits"], requires_grad=True)
    variance = settings.pop("variance", reference("embedding", case["codebook"]))
    result = composite_loss(logits, torch.from_numpy(case["targets"]), **settings_of(case, variance, **settings))
    assert torch.isfinite(torch.autograd.grad(result.total, logits, retain_graph=True)[0]).all()
    return logits, result


def test_new_discrepancy(monkeypatch):
    case = problem(32)
    monkeypatch.setitem(DISCREPANCIES, "absolute", lambda a, b, floor, smoothing: (a - b).abs())
    _, result = terms(case, discrepancy="absolute")
    dispersion_L = result.positions["dispersion"]
    assert result.second_order > 0 and dispersion_L.shape == (14,)
    _, squared = terms(case, discrepancy="squared")
    assert result.second_order.square() <= squared.second_order  # Jensen


def test_new_dispersion(monkeypatch):
    """The example of the docstring: the mass outside the largest class."""
    case = problem(32)
    monkeypatch.setitem(
        DISPERSIONS,
        "outside",
        Dispersion(lambda m: 1 - m.mass_NG.amax(-1), anchor_at="uniform", needs=frozenset({"mass"})),
    )
    logits, result = terms(
        case, dispersion="outside", normalize="none", variance=reference("embedding", case["codebook"]) * 0 + 0.5
    )
    mass = torch.stack([logits.softmax(-1)[..., case["classes"] == c].sum(-1) for c in (0, 1)], -1)
    torch.testing.assert_close(result.positions["dispersion"], (1 - mass.amax(-1)).mean(0).detach())


def test_new_first_order_term(monkeypatch):
    """The example of the docstring: the focal loss, with exponent 2."""
    case = problem(32)
    focal = lambda log_target, mean_log, epsilon, alpha: -((1 - log_target.exp()) ** 2) * log_target  # noqa: E731
    monkeypatch.setitem(FIRST_ORDER, "focal", focal)
    logits, result = terms(case, first_order="focal", lambda_1=0.0, lambda_2=0.0)
    p = logits.softmax(-1).gather(-1, torch.from_numpy(case["targets"])[..., None])[..., 0]
    torch.testing.assert_close(result.total, (-((1 - p) ** 2) * p.log()).mean())
