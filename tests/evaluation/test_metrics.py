import pytest
import torch

from uvar_tune.errors import ConfigError
from uvar_tune.evaluation import FAMILIES, Context, evaluate, fidelity_scores, open_extractor
from uvar_tune.metrics import metric


def test_all_families_yield_registered_numbers(networks, held_out, classifier_directory, digits, tmp_path):
    var, vqvae = networks
    tokens, labels = held_out
    count = []
    extractor = open_extractor("digits", weights=classifier_directory)
    extractor.network.classifier.register_forward_hook(lambda module, inputs, outputs: count.append(len(inputs[0])))
    samples = digits["validation"].images[:100]
    context = Context(
        generated_N3HW=samples,
        labels_N=torch.as_tensor(digits["validation"].labels_N)[:100],
        generated_tokens_NL=tokens,
        reference=digits["train"],
        extractor=extractor,
        cache_root=tmp_path,
        var=var,
        vqvae=vqvae,
        tokens_NL=tokens,
        token_labels_N=labels,
        classes_V=torch.arange(24) % 3,
        reference_variance_K=[1.0, 1.0, 1.0],
    )
    found = evaluate(context, FAMILIES)
    assert {
        "fid",
        "kid",
        "is",
        "precision",
        "recall",
        "f1",
        "density",
        "coverage",
        "ssim_pairwise",
        "code_usage",
        "conditional_accuracy",
        "nll_token",
        "accuracy",
        "entropy/scale_3",
    } <= set(found)
    assert all(metric(name).unit for name in found)
    assert sum(count) == 128 + 12 * 128  # chunks of 128: the samples once, the reference once
    assert found["conditional_accuracy"] > 0.9
    again = fidelity_scores(samples, digits["train"], extractor=extractor, cache_root=tmp_path)
    assert {name: found[name] for name in again} == again


def test_what_is_missing_is_named_before_anything_is_computed():
    with pytest.raises(ConfigError, match="'fidelity': needs generated_N3HW, reference, extractor"):
        evaluate(Context(), ["fidelity"])
    with pytest.raises(ConfigError, match="did you mean 'likelihood'"):
        evaluate(Context(), ["likelyhood"])


def test_samples_of_another_resolution_than_the_reference(extractor, digits, tmp_path):
    context = Context(
        generated_N3HW=digits["validation"].images[:50, :, :8, :8],
        labels_N=torch.zeros(50).long(),
        reference=digits["train"],
        extractor=extractor,
        cache_root=tmp_path,
    )
    for family in ("fidelity", "density", "classes"):
        with pytest.raises(ConfigError, match="reference images: they are 16x16, the generated images 8x8"):
            evaluate(context, [family])
