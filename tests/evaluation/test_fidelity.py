import warnings
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.linalg
import torch
from torch_fidelity import metric_fid

from uvar_tune.errors import ConfigError
from uvar_tune.evaluation.fidelity import (
    EXTRACTORS,
    FIDELITY_METRICS,
    Features,
    FidelityWarning,
    check_extractor,
    fidelity_scores,
    open_extractor,
    reference_features,
    scores_from_features,
)


def gaussian(count, mean_F, covariance_FF, seed):
    """Features whose sample mean and covariance are exactly the given ones."""
    z = np.random.default_rng(seed).standard_normal((count, len(mean_F)))
    z -= z.mean(0)
    white = z @ np.linalg.inv(np.linalg.cholesky(np.cov(z, rowvar=False))).T
    return torch.tensor(white @ np.linalg.cholesky(covariance_FF).T + mean_F)


def features(features_NF, classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Features(features_NF, torch.randn(len(features_NF), classes, generator=generator) * 2)


def random_covariance(width, seed):
    a = np.random.default_rng(seed).standard_normal((width, width + 3))
    return a @ a.T / width


def test_fid_of_gaussians_is_the_closed_form():
    width = 12
    m1, m2 = np.random.default_rng(0).standard_normal((2, width))
    s1, s2 = random_covariance(width, 1), random_covariance(width, 2)
    closed = ((m1 - m2) ** 2).sum() + np.trace(s1 + s2 - 2 * scipy.linalg.sqrtm(s1 @ s2).real)
    got = scores_from_features(features(gaussian(400, m1, s1, 3)), features(gaussian(300, m2, s2, 4)), metrics=["fid"])
    assert got["fid"] == pytest.approx(closed, rel=1e-9)


def test_kid_is_the_unbiased_mmd():
    x, y = torch.randn(2, 40, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    k = [[(a @ b.T / 6 + 1) ** 3 for b in (x, y)] for a in (x, y)]
    off = [(m.sum() - m.trace()) / (40 * 39) for m in (k[0][0], k[1][1])]
    expected = off[0] + off[1] - 2 * k[0][1].mean()
    got = scores_from_features(features(x), features(y), metrics=["kid"])
    assert got["kid"] == pytest.approx(float(expected), rel=1e-9)


def test_reference_moments_are_computed_once(monkeypatch):
    counted, compute = [], metric_fid.fid_features_to_statistics
    monkeypatch.setattr(metric_fid, "fid_features_to_statistics", lambda x: counted.append(len(x)) or compute(x))
    reference = features(torch.eye(20, 4))
    for count in (30, 40):
        scores_from_features(features(torch.eye(count, 4)), reference, metrics=["fid"])
    assert sorted(counted) == [20, 30, 40]


def test_is_by_definition():
    f = features(torch.zeros(200, 2))
    order = np.random.RandomState(7).permutation(200)
    parts = f.logits_NY[order].double().softmax(1).reshape(10, 20, 5)
    splits = (parts * (parts / parts.mean(1, keepdim=True)).log()).sum(2).mean(1).exp()
    got = scores_from_features(f, f, metrics=["is"], seed=7)
    expected = {"is": float(splits.mean()), "is_std": float(splits.std(correction=0))}
    assert got == pytest.approx(expected, rel=1e-9)


def test_precision_and_recall_by_definition():
    generator = torch.Generator().manual_seed(3)
    real, fake = (
        torch.randn(60, 4, generator=generator).double(),
        torch.randn(50, 4, generator=generator).double() * 0.2,
    )

    def share_inside(points, centres):
        radius = torch.cdist(centres, centres).sort(1).values[:, 3]
        return float((torch.cdist(points, centres) <= radius).any(1).double().mean())

    got = scores_from_features(features(fake), features(real), metrics=["precision", "recall"])
    precision, recall = share_inside(fake, real), share_inside(real, fake)
    assert got["precision"] == pytest.approx(precision, abs=1e-6) and got["recall"] == pytest.approx(recall, abs=1e-6)
    assert got["f1"] == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-6)
    assert precision > 0.9 > 0.5 > recall  # samples near the mean: faithful, not diverse


def test_a_set_equals_itself(extractor, digits):
    got = fidelity_scores(digits["train"].images, digits["train"], extractor=extractor)
    assert set(got) == {*FIDELITY_METRICS, "f1", "is_std"}
    assert abs(got["fid"]) < 1e-3 and got["precision"] == got["recall"] == 1.0


def test_clean_digits_score_better_than_noisy(extractor, digits):
    clean = digits["validation"].images
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)) * 60
    noisy = (clean.float() + noise).clamp(0, 255).to(torch.uint8)
    near, far = (fidelity_scores(images, digits["train"], extractor=extractor) for images in (clean, noisy))
    assert near["fid"] < far["fid"] / 2 and near["kid"] < far["kid"] and near["precision"] > far["precision"]


def test_features_of_ranks_concatenate(extractor, digits):
    images = digits["validation"].images
    halves = [extractor(images[:180]), extractor(images[180:])]
    joined = Features(*(torch.cat([getattr(h, field) for h in halves]) for field in ("features_NF", "logits_NY")))
    reference = extractor(digits["train"].images)
    one, two = scores_from_features(extractor(images), reference), scores_from_features(joined, reference)
    assert two == pytest.approx(one, abs=1e-6)


def test_reference_features_are_cached_by_hash(extractor, digits, tmp_path):
    small = digits["validation"].images[:80]
    first = fidelity_scores(small, digits["train"], extractor=extractor, cache_root=tmp_path, metrics=["fid"])

    class Unreadable:
        def __len__(self):
            return 1437

        def __getitem__(self, index):
            assert index == slice(None, 1), "only the resolution is read"
            return small[index]

    again = SimpleNamespace(images=Unreadable(), sha256=digits["train"].sha256)
    assert fidelity_scores(small, again, extractor=extractor, cache_root=tmp_path, metrics=["fid"]) == first
    reference_features(small, extractor, cache_root=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    next(tmp_path.iterdir()).write_bytes(b"nonsense")
    next(reversed(list(tmp_path.iterdir()))).write_bytes(b"nonsense")
    with pytest.raises(ConfigError, match="damaged"):
        reference_features(small, extractor, cache_root=tmp_path)


def test_parallel_writers_of_one_cache(extractor, digits, tmp_path):
    images = digits["validation"].images[:64]
    with ThreadPoolExecutor(4) as pool:
        features = list(pool.map(lambda _: reference_features(images, extractor, cache_root=tmp_path), range(4)))
    assert all(torch.equal(features[0].features_NF, other.features_NF) for other in features)
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


def test_few_samples_warn_or_are_refused(extractor, digits):
    images = digits["validation"].images
    with pytest.warns(FidelityWarning, match="50 images with 64 features is biased"):
        fidelity_scores(images[:50], digits["train"], extractor=extractor, metrics=["fid"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fidelity_scores(images[:80], digits["train"], extractor=extractor, metrics=["fid"])
    with pytest.raises(ConfigError, match="generated images: 9 are too few"):
        fidelity_scores(images[:9], digits["train"], extractor=extractor)
    with pytest.raises(ConfigError, match="kid_subset_size 500"):
        fidelity_scores(images[:100], digits["train"], extractor=extractor, kid_subset_size=500)


def test_unusable_images_are_refused(extractor, digits):
    images = digits["validation"].images
    with pytest.raises(ConfigError, match="reference images: they are 8x8, the generated images 16x16"):
        fidelity_scores(images, images[:, :, :8, :8], extractor=extractor)
    with pytest.raises(ConfigError, match="uint8"):
        fidelity_scores(images.float(), digits["train"], extractor=extractor)
    with pytest.raises(ConfigError, match="unknown fidelity metric 'fids'"):
        fidelity_scores(images, images, extractor=extractor, metrics=["fids"])


def test_unusable_networks_are_refused(tmp_path):
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    with pytest.raises(ConfigError, match="did you mean 'inception-v3-compat'"):
        check_extractor("inception-v3")
    with pytest.raises(ConfigError, match="needs the directory"):
        check_extractor("digits")
    with pytest.raises(ConfigError, match="nowhere does not exist"):
        check_extractor("inception-v3-compat", tmp_path / "nowhere")
    text, other = tmp_path / "text.pth", tmp_path / "other.pth"
    text.write_text("not weights")
    torch.save({"layer": torch.zeros(1)}, other)
    with pytest.raises(ConfigError, match="not a file of weights"):
        open_extractor("inception-v3-compat", weights=text)
    with pytest.raises(ConfigError, match="cannot load 'inception-v3-compat'"):
        open_extractor("inception-v3-compat", weights=other)
    with pytest.raises(ConfigError, match="no digits feature network"):
        open_extractor("digits", weights=tmp_path)
    assert set(EXTRACTORS) <= {*FEATURE_EXTRACTORS_REGISTRY, "digits"}
