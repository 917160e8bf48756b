"""FID, KID, IS, precision and recall by torch-fidelity; its only importer (lazily: the import takes seconds).

A feature network is one of torch-fidelity's, by name, or `digits`, our classifier registered with it. Features of
generated images are computed once for all metrics. Reference features are cached under the content hashes of the
images and of the weights, so that trials and nodes share them.

Shapes: N generated and M reference images (uint8, N3HW), F features, Y logits.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from uvar_tune.errors import ConfigError, choose, first_line
from uvar_tune.evaluation.features import check_images, load_classifier
from uvar_tune.io.atomic import write_bytes_atomic
from uvar_tune.io.hashing import file_sha256, state_sha256
from uvar_tune.io.tensor_file import load_tensors
from uvar_tune.metrics import FEATURE_WIDTHS

FIDELITY_METRICS = ("fid", "kid", "is", "precision", "recall")
INCEPTION = "inception-v3-compat"
EXTRACTORS = tuple(FEATURE_WIDTHS)
SMALLEST_SET = 16
NEIGHBOURS = 3  # of precision and recall (Kynkäänniemi et al. 2019)
_INCEPTION_FILE, _INCEPTION_SHA256 = "weights-inception-2015-12-05-6726825d.pth", "6726825d"


class FidelityWarning(UserWarning):
    """A number was computed that is less reliable than it looks."""


@dataclass(frozen=True)
class Features:
    """Features of a set of images.

    Attributes:
        features_NF: for FID, KID, precision and recall.
        logits_NY: for IS.
    """

    features_NF: Tensor
    logits_NY: Tensor

    def __len__(self) -> int:
        return len(self.features_NF)

    @cached_property
    def statistics(self) -> dict[str, np.ndarray]:
        """Mean and covariance in float64 for FID, computed once: a reference meets many sets of samples."""
        from torch_fidelity.metric_fid import fid_features_to_statistics

        return fid_features_to_statistics(self.features_NF.double())


class Extractor:
    """A feature network on a device. Its name and the hash of its weights are part of a number's protocol.

    Args:
        name: one of `EXTRACTORS`.
        network: torch-fidelity's feature extractor.
        device: to compute on.
    """

    def __init__(self, name: str, network, device: str):
        self.name, self.device, self.network = name, device, network.to(device)
        self.weights_hash = state_sha256(network)
        self._layers = [network.get_default_feature_layer_for_metric(metric) for metric in ("fid", "isc")]

    @torch.no_grad()
    def __call__(self, images, *, chunk: int = 128, progress: Callable[[int, int], None] | None = None) -> Features:
        """Features of indexable uint8 images, float32 on the CPU.

        Args:
            images: with a length; its slices are uint8 tensors (N, 3, H, W).
            chunk: images processed at once. Chunks have one fixed size, because kernels round by batch shape.
            progress: called with (images done, images).

        Raises:
            ConfigError: images of another type, or features that are not finite.
        """
        parts: list[dict[str, Tensor]] = []
        for start in range(0, len(images), chunk):
            part_B3HW = torch.as_tensor(images[start : start + chunk])
            check_images(part_B3HW, where=f"images for feature network {self.name!r}")
            padding = part_B3HW[:1].expand(chunk - len(part_B3HW), -1, -1, -1)
            outputs = self.network(torch.cat([part_B3HW, padding]).to(self.device))
            layers = self.network.convert_features_tuple_to_dict(outputs)
            parts.append({name: layers[name][: len(part_B3HW)].float().cpu() for name in layers})
            if progress:
                progress(min(start + chunk, len(images)), len(images))
        features_NF, logits_NY = (torch.cat([part[layer] for part in parts]) for layer in self._layers)
        if not (torch.isfinite(features_NF).all() and torch.isfinite(logits_NY).all()):
            raise ConfigError("features are not finite: damaged weights", where=f"feature network {self.name!r}")
        return Features(features_NF, logits_NY)


def check_extractor(name: str, weights: str | Path | None = None) -> None:
    """The checks of `open_extractor` that cost nothing.

    Raises:
        ConfigError: an unknown name, or weights that are needed, not supported or missing.
    """
    choose(name, EXTRACTORS, "feature network", "evaluation.extractor")
    if name == "digits" and weights is None:
        raise ConfigError(
            "the feature network 'digits' needs the directory of a trained classifier", where="evaluation.weights"
        )
    if name.startswith("dinov2") and weights is not None:
        raise ConfigError("DINOv2 comes from torch.hub's cache; a path is not supported", where="evaluation.weights")
    if weights is not None and not Path(weights).exists():
        raise ConfigError(f"{weights} does not exist", where="evaluation.weights")


def open_extractor(name: str, *, weights: str | Path | None = None, device: str = "cpu") -> Extractor:
    """Load a feature network.

    Args:
        name: one of `EXTRACTORS`.
        weights: directory of a digits classifier, or file of torch-fidelity's weights. None downloads
            torch-fidelity's own (Inception's checksum is verified).
        device: to compute on.

    Raises:
        ConfigError: an unknown name, missing or unusable weights, or a failed download.
    """
    check_extractor(name, weights)
    import torch_fidelity.utils as fidelity_utils

    _register_digits()
    if name == INCEPTION and weights is None:
        weights = _inception_weights()
    if name in (INCEPTION, "vgg16") and weights is not None:
        _check_state_dict(Path(weights))
    cls = fidelity_utils.FEATURE_EXTRACTORS_REGISTRY[name]
    layers = list(dict.fromkeys(cls.get_default_feature_layer_for_metric(metric) for metric in ("fid", "isc")))
    try:
        network = fidelity_utils.create_feature_extractor(
            name, layers, cuda=False, verbose=False, feature_extractor_weights_path=weights and str(weights)
        )
    except Exception as error:  # no network, wrong keys or shapes, or whatever a damaged file makes PyTorch raise
        raise ConfigError(
            f"cannot load {name!r} from {weights or 'its download'}: {first_line(error)}", where="evaluation.weights"
        ) from error
    return Extractor(name, network, device)


def _register_digits() -> None:
    """Register `digits` with torch-fidelity, once a process (its base class needs the lazy import)."""
    from torch_fidelity import FeatureExtractorBase, register_feature_extractor
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    if "digits" in FEATURE_EXTRACTORS_REGISTRY:
        return

    class DigitsExtractor(FeatureExtractorBase):
        def __init__(self, name, features_list, feature_extractor_weights_path=None, **kwargs):
            super().__init__(name, features_list)
            self.classifier = load_classifier(feature_extractor_weights_path)

        @staticmethod
        def get_provided_features_list():
            return "features", "logits"

        @staticmethod
        def get_default_feature_layer_for_metric(metric):
            return "logits" if metric == "isc" else "features"

        @staticmethod
        def can_be_compiled():
            return False

        @staticmethod
        def get_dummy_input_for_compile():
            return torch.zeros(1, 3, 16, 16, dtype=torch.uint8)

        def forward(self, images_B3HW):
            layers = dict(zip(("features", "logits"), self.classifier(images_B3HW), strict=True))
            return tuple(layers[name] for name in self.features_list)

    register_feature_extractor("digits", DigitsExtractor)


def _inception_weights() -> Path:
    """The Inception file of torch-fidelity in torch.hub's cache, downloaded if missing, with verified checksum."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    path = Path(torch.hub.get_dir()) / "checkpoints" / _INCEPTION_FILE
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), _INCEPTION_SHA256, progress=False)
        except (OSError, RuntimeError) as error:
            raise ConfigError(
                f"cannot download {URL_INCEPTION_V3} ({error}); give the file's path", where="evaluation.weights"
            ) from error
    elif not file_sha256(path).startswith(_INCEPTION_SHA256):
        raise ConfigError(
            f"{path} is damaged: its SHA-256 does not begin with {_INCEPTION_SHA256}; delete it",
            where="evaluation.weights",
        )
    return path


def _check_state_dict(path: Path) -> None:
    """Check that a file holds plain tensors only, because torch-fidelity unpickles whatever it holds."""
    try:
        load_tensors(path, device="meta")
    except Exception as error:  # whatever a damaged or malicious pickle makes the reader raise
        raise ConfigError(
            f"{path} is not a file of weights ({first_line(error)})", where="evaluation.weights"
        ) from error


def images_sha256(images) -> str:
    """SHA-256 of uint8 images: the ``sha256`` of an ImageSet, else computed of shape and bytes."""
    sha256 = getattr(images, "sha256", None)
    if sha256 is not None:
        return sha256
    images_N3HW = torch.as_tensor(images).contiguous()
    digest = hashlib.sha256(str(tuple(images_N3HW.shape)).encode())
    digest.update(images_N3HW.numpy().tobytes())
    return digest.hexdigest()


def reference_features(
    reference,
    extractor: Extractor,
    *,
    cache_root: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Features:
    """Features of a reference set, computed once for each hash of images and weights.

    Args:
        reference: uint8 tensor or ImageSet.
        extractor: the feature network.
        cache_root: directory of the cache; None computes them without a cache.
        progress: called with (images done, images).

    Raises:
        ConfigError: damaged cached features.
    """
    images = getattr(reference, "images", reference)
    if cache_root is None:
        return extractor(images, progress=progress)
    from safetensors import SafetensorError
    from safetensors.torch import load, save

    name = f"{extractor.name}-{extractor.weights_hash[:16]}-{images_sha256(reference)[:16]}.safetensors"
    path = Path(cache_root) / name
    if path.exists():
        try:
            tensors = load(path.read_bytes())
        except SafetensorError as error:
            raise ConfigError(f"the cached features are damaged ({error}); delete the file", where=str(path)) from error
        return Features(tensors["features"], tensors["logits"])
    features = extractor(images, progress=progress)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes_atomic(
        path, save({"features": features.features_NF.contiguous(), "logits": features.logits_NY.contiguous()})
    )
    return features


def fidelity_scores(
    generated,
    reference,
    *,
    extractor: Extractor,
    cache_root: str | Path | None = None,
    metrics: Sequence[str] = FIDELITY_METRICS,
    seed: int = 2020,
    kid_subset_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Scores of generated against reference images: `fid`, `kid`, `is` (and `is_std`), `precision`, `recall`, `f1`.

    Args:
        generated: uint8 N3HW, in the order of the image index.
        reference: uint8 M3HW, or an ImageSet.
        extractor: see `open_extractor`.
        cache_root: see `reference_features`.
        metrics: see `scores_from_features`.
        seed: see `scores_from_features`.
        kid_subset_size: see `scores_from_features`.
        progress: called with (images done, images) while features of generated images are computed.

    Raises:
        ConfigError: images of another type or resolution, or too few.
    """
    check_sets(generated, reference)
    reference = reference_features(reference, extractor, cache_root=cache_root)
    features = extractor(generated, progress=progress)
    return scores_from_features(features, reference, metrics=metrics, seed=seed, kid_subset_size=kid_subset_size)


def scores_from_features(
    generated: Features,
    reference: Features,
    *,
    metrics: Sequence[str] = FIDELITY_METRICS,
    seed: int = 2020,
    kid_subset_size: int | None = None,
) -> dict[str, float]:
    """The scores of `fidelity_scores` from features.

    Args:
        generated: features of the generated images.
        reference: features of the reference images.
        metrics: any of `FIDELITY_METRICS`; `precision` and `recall` together add `f1`, their harmonic mean, and `is`
            adds `is_std`, its standard deviation over the splits.
        seed: of KID's subsets and of the shuffling before IS's ten splits (the lowest 32 bits).
        kid_subset_size: None for the largest that both sets allow, at most torch-fidelity's 1,000.

    Raises:
        ConfigError: an unknown metric, too few images, or a KID subset larger than a set.
    """
    from torch_fidelity.metric_fid import fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric

    for metric in metrics:
        choose(metric, FIDELITY_METRICS, "fidelity metric", "evaluation.metrics")
    _check_counts(generated, reference, metrics, kid_subset_size)
    seed &= 0xFFFFFFFF
    pair, scores = (generated.features_NF, reference.features_NF), {}
    if "fid" in metrics:
        scores["fid"] = fid_statistics_to_metric(generated.statistics, reference.statistics, False)
    if "kid" in metrics:
        size = kid_subset_size or min(1000, len(generated), len(reference))
        scores["kid"] = kid_features_to_metric(*pair, kid_subset_size=size, rng_seed=seed, verbose=False)
    if "is" in metrics:
        scores["is"] = isc_features_to_metric(generated.logits_NY, rng_seed=seed)
        scores["is_std"] = {"over splits": scores["is"]["inception_score_std"]}
    values = {name: float(next(iter(value.values()))) for name, value in scores.items()}  # the mean is the first entry
    if {"precision", "recall"} & set(metrics):
        values |= _precision_recall(*pair, metrics)
    assert all(np.isfinite(value) for value in values.values()), values
    return values


def _precision_recall(generated_NF: Tensor, reference_MF: Tensor, metrics: Sequence[str]) -> dict[str, float]:
    from torch_fidelity.metric_prc import prc_features_to_metric

    settings: dict[str, Any] = {"prc_neighborhood": NEIGHBOURS, "save_cpu_ram": True, "verbose": False}
    values = prc_features_to_metric(generated_NF.double(), reference_MF.double(), **settings)
    scores = {name: values[name] for name in ("precision", "recall") if name in metrics}
    return scores | ({"f1": values["f_score"]} if len(scores) == 2 else {})


def check_sets(generated, reference) -> None:
    """Check two sets of images before features are computed.

    Feature networks that resize would accept images of another resolution silently.

    Raises:
        ConfigError: another type, too few images, or unequal resolutions.
    """
    sizes = []
    for what, some in (("generated images", generated), ("reference images", getattr(reference, "images", reference))):
        if len(some) < SMALLEST_SET:
            raise ConfigError(f"{len(some)} are too few, at least {SMALLEST_SET} are needed", where=what)
        first = torch.as_tensor(some[:1])
        check_images(first, where=what)
        sizes.append("x".join(str(side) for side in first.shape[2:]))
    if sizes[0] != sizes[1]:
        raise ConfigError(f"they are {sizes[1]}, the generated images {sizes[0]}", where="reference images")


def _check_counts(
    generated: Features, reference: Features, metrics: Sequence[str], kid_subset_size: int | None
) -> None:
    smallest, width = min(len(generated), len(reference)), generated.features_NF.shape[1]
    if smallest < SMALLEST_SET:
        raise ConfigError(f"{smallest} images are too few, at least {SMALLEST_SET} are needed", where="fidelity")
    if "kid" in metrics and kid_subset_size is not None and not 2 <= kid_subset_size <= smallest:
        raise ConfigError(
            f"kid_subset_size {kid_subset_size} must be between 2 and {smallest}, the size of the smaller set",
            where="fidelity",
            nearest=str(smallest),
        )
    if "fid" in metrics and smallest <= width:
        warnings.warn(
            f"FID from {smallest} images with {width} features is biased upwards: the covariance is singular",
            FidelityWarning,
            stacklevel=3,
        )
