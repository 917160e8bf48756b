"""Constants prepared once, and everything that a user can get wrong in a call of the losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers.objective_cases import BATCH, LENGTH, head_of, problem, reference, settings_of
from uvar_tune.config.schema import LossConfig
from uvar_tune.errors import ConfigError, Diverged
from uvar_tune.objective import (
    CompositeLoss,
    composite_loss,
    fused_composite_loss,
    prepare_loss,
)


def on_logits(case, settings):
    return composite_loss(torch.tensor(case["logits"]), torch.as_tensor(case["targets"]), **settings)


def fused(case, settings):
    return fused_composite_loss(*head_of(case), torch.as_tensor(case["targets"]), **settings)


def prepared(case, settings):
    return CompositeLoss(**settings)(torch.tensor(case["logits"]), torch.as_tensor(case["targets"]))


def prepared_fused(case, settings):
    return CompositeLoss(**settings).fused(*head_of(case), torch.as_tensor(case["targets"]))


FUNCTIONS = [on_logits, fused, prepared, prepared_fused]


@pytest.mark.parametrize("pair", [(on_logits, prepared), (fused, prepared_fused)])
def test_a_prepared_loss_is_the_same_bit_for_bit(pair):
    case = problem(32)
    settings = settings_of(case, reference("embedding", case["codebook"]), first_order="label_relaxation")
    once, ready = (function(case, settings) for function in pair)
    for name in ("total", "ce", "first_order", "second_order", "semantic_entropy"):
        assert torch.equal(getattr(once, name), getattr(ready, name))
    assert all(torch.equal(values_L, ready.positions[name]) for name, values_L in once.positions.items())


def test_positions_average_to_scalars():
    case = problem(32)
    result = on_logits(case, settings_of(case, reference("embedding", case["codebook"])))
    for name in ("total", "ce", "first_order", "second_order", "semantic_entropy"):
        torch.testing.assert_close(result.positions[name].mean(), getattr(result, name))
        torch.testing.assert_close(
            result.per_scale[name] @ torch.tensor([1.0, 4.0, 9.0]) / LENGTH, getattr(result, name)
        )
    assert result.positions["dispersion"].shape == (LENGTH,)


@pytest.mark.parametrize("fused_too", [False, True])
def test_a_prepared_call_reads_the_device_once(fused_too):
    """Scalars leave the tensors in one list at the end, never one by one on the way (on CUDA each would be a wait)."""
    case, read = problem(32), []
    loss = CompositeLoss(**settings_of(case, reference("embedding", case["codebook"])))
    targets_BL, leaves = torch.from_numpy(case["targets"]), head_of(case)

    class Reads(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            if function.name() in ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero"):
                read.append(function.name())
            return function(*arguments, **(keywords or {}))

    loss.fused(*leaves, targets_BL)  # layouts of the classes are made at the first use
    with Reads():
        (loss.fused(*leaves, targets_BL) if fused_too else loss(torch.tensor(case["logits"]), targets_BL))
    assert not read


def test_integers_of_any_width():
    case = problem(32)
    settings = settings_of(case, reference("embedding", case["codebook"]))
    narrow = {**case, "targets": case["targets"].astype(np.int32), "classes": case["classes"].astype(np.int32)}
    assert torch.equal(on_logits(case, settings).total, on_logits(narrow, settings).total)
    assert torch.equal(fused(case, settings).total, fused(narrow, settings).total)


CONSTANTS = {
    "classes' length": (dict(classes=np.zeros(7, np.int64)), {}, "classes: shape"),
    "classes' gap": (dict(classes=np.array([0, 0, 0, 0, 2, 2, 2, 2])), {}, "class 1 has no code"),
    "classes' type": (dict(classes=np.zeros(8, np.float32)), {}, "one integer for each"),
    "negative class": (dict(classes=np.array([-1, 0, 0, 0, 0, 0, 0, 0])), {}, "-1 is negative"),
    "equal codes": (dict(codebook=np.ones((8, 3), np.float32)), {}, "codes must differ"),
    "codes without dimension": (dict(codebook=np.ones(8, np.float32)), {}, "codebook: shape"),
    "share": ({}, dict(lambda_unit="share"), "shares of the gradient.*did you mean 'raw'"),
    "dispersion": ({}, dict(dispersion="embeding"), "did you mean 'embedding'"),
    "discrepancy": ({}, dict(discrepancy="wasserstien"), "did you mean 'wasserstein'"),
    "normalize": ({}, dict(normalize="relatve"), "did you mean 'relative'"),
    "first_order": ({}, dict(first_order="label_smothing"), "did you mean 'label_smoothing'"),
    "kl against 0": ({}, dict(discrepancy="kl", variance=np.zeros(3, np.float32)), "0 at scale 0 is below 0.001"),
    "negative variance": ({}, dict(variance=np.float32([0.1, -0.1, 0.1])), "-0.1.* at scale 1"),
    "variance NaN": ({}, dict(variance=np.float32([0.1, 0.1, np.nan])), "nan at scale 2"),
    "variance's length": ({}, dict(variance=np.ones(2, np.float32)), "each of 3 scales"),
    "no scales": ({}, dict(scales=()), "patch sizes"),
    "scale 0": ({}, dict(scales=(1, 0, 3)), "patch sizes"),
    "scale 1.5": ({}, dict(scales=(1, 1.5, 3)), "patch sizes"),
}
PREDICTIONS = {
    "targets above": (dict(targets=np.full((BATCH, LENGTH), 8)), {}, "targets: 8 is outside \\[0, 8\\)"),
    "targets below": (dict(targets=np.full((BATCH, LENGTH), -1)), {}, "targets: -1 is outside"),
    "targets far above": (dict(targets=np.full((BATCH, LENGTH), 2**40)), {}, "targets: 1099511627776 is outside"),
    "targets' shape": (dict(targets=np.zeros((BATCH, LENGTH - 1), np.int64)), {}, "targets: shape"),
    "targets' type": (dict(targets=np.zeros((BATCH, LENGTH))), {}, "codes are integers"),
    "no images": (
        dict(targets=np.zeros((0, 14), int), logits=np.zeros((0, 14, 8), np.float32)),
        {},
        "holds no position",
    ),
    "logits' length": (dict(logits=np.zeros((BATCH, 13, 8), np.float32)), {}, "14 positions"),
    "scales' sum": ({}, dict(scales=(1, 2, 4)), "21 positions"),
    "logits' codes": (dict(logits=np.zeros((BATCH, LENGTH, 9), np.float32)), {}, "codebook|logits"),
}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("name", [*CONSTANTS, *PREDICTIONS])
def test_bad_input_is_refused_with_value_and_rule(name, function):
    changes, settings, message = (CONSTANTS | PREDICTIONS)[name]
    case = {**problem(8), **changes}
    variance = settings.get("variance", reference("embedding", problem(8)["codebook"]))
    settings = {key: value for key, value in settings.items() if key != "variance"}
    with pytest.raises(ConfigError, match=message) as caught:
        function(case, settings_of(case, variance, **settings))
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("name", CONSTANTS)
def test_bad_constants_are_refused_when_prepared(name):
    changes, settings, message = CONSTANTS[name]
    case = {**problem(8), **changes}
    variance = settings.get("variance", reference("embedding", problem(8)["codebook"]))
    settings = {key: value for key, value in settings.items() if key != "variance"}
    with pytest.raises(ConfigError, match=message):
        prepare_loss(**settings_of(case, variance, **settings))


def test_a_head_that_does_not_fit_is_refused():
    case = problem(8)
    settings = settings_of(case, reference("embedding", case["codebook"]))
    targets_BL = torch.from_numpy(case["targets"])
    hidden_BLD, weight_VD, bias_V = head_of(case)
    narrow, short, flat = (hidden_BLD, weight_VD[:, :5], bias_V), (hidden_BLD, weight_VD, bias_V[:5]), hidden_BLD[0]
    for leaves in (narrow, short, (flat, weight_VD, bias_V)):
        with pytest.raises(ConfigError, match="expected \\(B, L, D\\), \\(V, D\\), \\(V,\\)"):
            fused_composite_loss(*leaves, targets_BL, **settings)
    with pytest.raises(ConfigError, match="the codebook asks for"):
        CompositeLoss(**settings).fused(hidden_BLD, weight_VD[:5], bias_V[:5], targets_BL)


@pytest.mark.parametrize("weights", [(0.0, 0.0), (0.3, 0.2)])
@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_logits_that_are_not_numbers_are_divergence(function, poison, weights):
    case = problem(8)
    case["logits"][1, 3, 2] = poison
    settings = settings_of(case, reference("embedding", case["codebook"]), lambda_1=weights[0], lambda_2=weights[1])
    with pytest.raises(Diverged, match="not a finite number"):
        function(case, settings)


@pytest.mark.parametrize(
    "name, value, rule",
    [
        ("lambda_1", -0.1, "greater than or equal to 0"),
        ("lambda_1", float("inf"), "finite"),
        ("lambda_2", 1.0, "less than 1"),
        ("lambda_2", float("nan"), "finite"),
        ("kl_smoothing", -1e-3, "greater than or equal to 0"),
        ("epsilon", 1.5, "less than 1"),
        ("alpha", 1.0, "less than 1"),
        ("condition_on", "klass", "'scale' or 'class'"),
    ],
)
def test_config_refuses_values_out_of_range(name, value, rule):
    with pytest.raises(ConfigError, match=f"^{name} .*{rule}[^\\n]*$"):
        LossConfig(**{name: value})


def test_config_refuses_a_discrepancy_without_meaning():
    LossConfig(lambda_1=0.1, reference="uniform", dispersion="probability", discrepancy="wasserstein")
    LossConfig(lambda_1=0.1, reference="uniform", dispersion="embedding", discrepancy="kl")
    with pytest.raises(ValueError, match="reference variance of 0; take 'wasserstein'"):
        LossConfig(lambda_1=0.1, reference="uniform", dispersion="probability", discrepancy="kl")
