import pytest
import torch

from uvar_tune.config.schema import LossConfig
from uvar_tune.errors import ConfigError
from uvar_tune.evaluation import FAMILIES, MetricInputs, evaluate, fidelity_scores
from uvar_tune.metrics import metric


def test_all_families_yield_registered_metrics(networks, held_out, extractor, digits):
    var, vqvae = networks
    tokens_ML, labels_M = held_out
    images_N3HW = digits["validation"].images[:100]
    inputs = MetricInputs(
        images_N3HW=images_N3HW,
        labels_N=torch.as_tensor(digits["validation"].labels_N)[:100],
        tokens_NL=tokens_ML[torch.arange(100) % len(tokens_ML)],
        features=extractor(images_N3HW),
        reference=extractor(digits["train"].images),
        var=var,
        vqvae=vqvae,
        training_tokens_ML=tokens_ML,
        training_labels_M=labels_M,
        held_out_tokens_ML=tokens_ML,
        held_out_labels_M=labels_M,
        loss=LossConfig(),
        classes_V=torch.arange(24) % 3,
        reference_variance_K=[1.0, 1.0, 1.0],
    )
    scores = evaluate(inputs, FAMILIES)
    expected = "fid kid is precision recall f1 density coverage ssim_pairwise code_usage conditional_accuracy nll_token copy_share"
    assert {*expected.split(), "accuracy", "entropy/scale_3"} <= set(scores)
    assert all(metric(name).unit for name in scores)
    assert scores["conditional_accuracy"] > 0.9
    fidelity = fidelity_scores(images_N3HW, digits["train"], extractor=extractor)
    assert {name: scores[name] for name in fidelity} == fidelity


def test_missing_inputs_are_named():
    with pytest.raises(ConfigError, match="'fidelity': needs features, reference"):
        evaluate(MetricInputs(), ["fidelity"])
    with pytest.raises(ConfigError, match="did you mean 'likelihood'"):
        evaluate(MetricInputs(), ["likelyhood"])
