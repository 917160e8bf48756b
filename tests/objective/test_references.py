"""References against the NumPy oracle, their invariances, caps, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import objective_oracle
from tests.helpers import reference_oracle as oracle
from uvar_tune.config.schema import LossConfig
from uvar_tune.errors import ConfigError
from uvar_tune.objective import DISPERSIONS, REFERENCES, build_reference
from uvar_tune.objective import reference as reference_module

SCALES, LENGTH, VOCABULARY = (1, 2, 3), 14, 20


def source(seed=0, images=60, vocabulary=VOCABULARY, labels=3):
    """Tokens whose frequencies differ by label, position and scale; a codebook far from the origin."""
    rng = np.random.default_rng(seed)
    labels_N = np.arange(images) % labels
    preference = rng.standard_normal((labels, LENGTH, vocabulary)) * 2.0
    p = np.exp(preference) / np.exp(preference).sum(-1, keepdims=True)
    tokens_NL = np.array([[rng.choice(vocabulary, p=p[y, i]) for i in range(LENGTH)] for y in labels_N])
    return {"tokens_NL": tokens_NL, "labels_N": labels_N, "codebook": 2.0 + rng.standard_normal((vocabulary, 5))}


def build(name, case, **options):
    arguments = {key: options.pop(key, value) for key, value in (("num_classes", 3), ("scales", SCALES))}
    return build_reference(
        LossConfig().model_copy(update={"reference": name, **options}),
        codebook=torch.from_numpy(case["codebook"]),
        tokens_NL=case["tokens_NL"],
        labels_N=case["labels_N"],
        **arguments,
    )


def exact(name, case, dispersion, **options):
    find = getattr(oracle, name)
    return find(case["tokens_NL"], case["labels_N"], case["codebook"], SCALES, dispersion, **options)


OPTIONS = {
    "uniform": [({}, {})],
    "dataset": [({}, {}), ({"condition_on": "class"}, {"condition_on": "class"})],
    "semantic": [({}, {}), ({"neighbours": 3.5}, {"neighbours": 3.5}), ({"distance": "cosine"}, {"metric": "cosine"})],
    "normal": [({}, {}), ({"perplexity": 5}, {"perplexity": 5}), ({"distance": "cosine"}, {"metric": "cosine"})],
}


@pytest.mark.parametrize("dispersion", DISPERSIONS)
@pytest.mark.parametrize("name", REFERENCES)
def test_agrees_with_the_oracle(name, dispersion):
    case = source()
    for requested, renamed in OPTIONS[name]:
        result = build(name, case, dispersion=dispersion, **requested)
        np.testing.assert_allclose(result.variance_K, exact(name, case, dispersion, **renamed), rtol=2e-6, atol=1e-9)
        assert result.variance_K.dtype == torch.float32 and result.dispersion == dispersion and result.name == name
        json.dumps(result.diagnostics)
        relative = np.array(result.diagnostics["relative_variance"]) * result.diagnostics["anchor"]
        np.testing.assert_allclose(relative, result.variance_K, rtol=1e-6, atol=1e-12)


def test_dataset_keeps_entropy_of_positions():
    case = source()
    result = build("dataset", case).diagnostics
    parts = np.split(case["tokens_NL"], [1, 5], axis=1)
    assert result["target_entropy"] == pytest.approx([oracle.position_entropy(part) for part in parts])
    assert result["entropy"] == pytest.approx(result["target_entropy"]) and result["capped_share"] == [0, 0, 0]


def test_class_condition_lowers_entropy():
    by_scale, by_class = (
        build("dataset", source(images=300), condition_on=condition_on) for condition_on in ("scale", "class")
    )
    assert (np.array(by_class.diagnostics["entropy"]) < by_scale.diagnostics["entropy"]).all()


def test_entropy_beyond_support_is_capped():
    """Two images: each position shows two codes once, and Miller–Madow asks for more than the code pairs allow."""
    case = source(images=2, labels=1)
    case["tokens_NL"][:] = [[0] * LENGTH, [1] * LENGTH]
    result = build("dataset", case, num_classes=1)
    two = np.zeros((1, VOCABULARY))
    two[0, :2] = 0.5
    assert result.diagnostics["capped_share"] == [1, 1, 1]
    assert result.diagnostics["entropy"] == pytest.approx([np.log(2)] * 3)
    assert result.diagnostics["target_entropy"] == pytest.approx([np.log(2) + 0.25] * 3)
    variance = objective_oracle.dispersion("embedding", two[0], case["codebook"])
    np.testing.assert_allclose(result.variance_K, [variance] * 3, rtol=1e-6)


def test_variance_grows_with_neighbours():
    case = source()
    variances = [build("semantic", case, neighbours=n).variance_K for n in (2, 4, 8, 16)]
    assert all((small < large).all() for small, large in zip(variances, variances[1:], strict=False))
    assert (build("normal", case, perplexity=1.05).variance_K < build("normal", case).variance_K).all()
    assert (build("semantic", case, neighbours=19.99).variance_K < build("uniform", case).variance_K * 1.2).all()


def test_twins_are_reported_or_refused():
    case = source()
    case["codebook"][:5] = case["codebook"][0]
    result = build("semantic", case, neighbours=3)
    assert result.diagnostics["codes_with_more_twins"] == len(set(np.unique(case["tokens_NL"])) & set(range(5)))
    case["codebook"][:] = case["codebook"][0]
    case["codebook"][-1] += 1.0
    with pytest.raises(ConfigError, match="codes coincide"):
        build("normal", case)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(list(REFERENCES)), st.floats(0.1, 10.0))
def test_invariances(seed, name, scale):
    """The order of images and the names of codes do not matter; the embedding's variance scales with its square."""
    case, rng = source(seed=seed % 7, images=24), np.random.default_rng(seed)
    order, rename = rng.permutation(24), rng.permutation(VOCABULARY)
    changed = {
        "tokens_NL": np.argsort(rename)[case["tokens_NL"][order]],
        "labels_N": case["labels_N"][order],
        "codebook": scale * case["codebook"][rename] + rng.standard_normal(5),
    }
    for dispersion, factor in (("embedding", scale**2), ("probability", 1.0)):
        result, expected = (build(name, each, dispersion=dispersion).variance_K for each in (changed, case))
        np.testing.assert_allclose(result, factor * expected, rtol=1e-4, atol=1e-7)
        limit = build("uniform", case, dispersion=dispersion).diagnostics["anchor"]
        assert (result >= 0).all() and (dispersion == "embedding" or (result <= limit * (1 + 1e-6)).all())


def test_tokens_may_be_memory_mapped_or_tensors(tmp_path):
    case = source()
    np.save(tmp_path / "tokens.npy", case["tokens_NL"].astype(np.uint16))
    mapped = {**case, "tokens_NL": np.load(tmp_path / "tokens.npy", mmap_mode="r")}
    tensors = {**case, "tokens_NL": torch.from_numpy(case["tokens_NL"]), "labels_N": torch.from_numpy(case["labels_N"])}
    expected = build("dataset", case).variance_K
    assert torch.equal(build("dataset", mapped).variance_K, expected)
    assert torch.equal(build("dataset", tensors).variance_K, expected)


def test_new_reference(monkeypatch):
    def _frequency(source, config):
        return source.dispersion(torch.from_numpy(source.frequencies_KV)), {}

    monkeypatch.setitem(reference_module.REFERENCES, "frequency", _frequency)
    case = source()
    histograms, _ = oracle.frequencies(case["tokens_NL"], SCALES, VOCABULARY)
    expected = [objective_oracle.dispersion("embedding", p, case["codebook"]) for p in histograms]
    np.testing.assert_allclose(build("frequency", case).variance_K, expected, rtol=1e-6)


BAD = {
    "name": ("semantc", {}, {}, "did you mean 'semantic'"),
    "distance": ("normal", {"distance": "manhattan"}, {}, "unknown distance"),
    "dispersion": ("normal", {"dispersion": "probabilty"}, {}, "did you mean 'probability'"),
    "condition_on": ("semantic", {"condition_on": "class"}, {}, "only the reference 'dataset'"),
    "neighbours": ("semantic", {"neighbours": 20}, {}, "1 < neighbours < 20"),
    "perplexity": ("normal", {"perplexity": 1.0}, {}, "1 < perplexity < 20"),
    "scales": ("uniform", {"scales": (1, 2)}, {}, "need \\(N > 0, 5\\)"),
    "tokens above": ("uniform", {}, {"tokens_NL": np.full((60, LENGTH), 20)}, "20 is outside"),
    "tokens below": ("uniform", {}, {"tokens_NL": np.full((60, LENGTH), -1)}, "-1 is outside"),
    "labels": ("uniform", {"num_classes": 2}, {}, "labels: 2 is outside"),
    "labels' length": ("uniform", {}, {"labels_N": np.zeros(59, int)}, "labels for 60 rows"),
    "codes": ("uniform", {}, {"codebook": np.ones((VOCABULARY, 5))}, "codes must differ"),
    "one code": ("uniform", {}, {"codebook": np.ones((1, 5))}, "at least 2"),
    "no direction": ("normal", {"distance": "cosine"}, {"codebook": np.eye(VOCABULARY, 5)}, "no direction"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name):
    reference, options, changes, message = BAD[name]
    with pytest.raises(ConfigError, match=message):
        build(reference, {**source(), **changes}, **options)
