"""Protocol and origin of a number: the rules under which it was computed, and what it was computed from.

Numbers are comparable under equal protocols only (FID is biased by the sample count and depends on reference set,
resizer and precision). The origin is recorded and may differ. Both are plain data and are stored as dictionaries.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from uvar_tune.errors import ConfigError

VERSION = 2  # of our metric definitions; raised by a change that moves a number


class ProtocolMismatch(ConfigError):
    """Numbers of unequal protocols cannot be compared; ``where`` names the field."""


@dataclass(frozen=True)
class Protocol:
    """Everything that must be equal for two numbers to be comparable.

    Attributes:
        metric_version: of our definitions and of torch-fidelity, see `metric_version`.
        samples: number of generated images.
        reference: content hash of the reference images.
        feature_network: its name.
        weights: content hash of its loaded state.
        resizer: how images were brought to the resolution of the comparison.
        precision: of the features.
        cfg_convention: meaning of a CFG scale.
        divisor: the network whose errors mCE is divided by; empty for other metrics.
        conditions: further conditions, e.g. the corruptions or the out-of-distribution sets.
    """

    metric_version: str
    samples: int
    reference: str
    feature_network: str
    weights: str
    resizer: str
    precision: str
    cfg_convention: str
    divisor: str = ""
    conditions: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, tree: dict[str, Any]) -> Protocol:
        """Inverse of `as_dict`; ConfigError if a field is missing or unknown."""
        return _from_dict(cls, tree, "protocol")


@dataclass(frozen=True)
class Origin:
    """What a number was computed from.

    Attributes:
        configuration: hash of the configuration.
        checkpoint: its directory and images seen.
        seeds: of the sampling.
        cfg_scale: of the samples; None if nothing was sampled (likelihoods).
        top_k: of the samples.
        top_p: of the samples.
        temperature: of the samples.
        cfg_ramp: of the samples.
    """

    configuration: str
    checkpoint: str
    seeds: str
    cfg_scale: float | None
    top_k: int = 0
    top_p: float = 0.0
    temperature: float = 1.0
    cfg_ramp: float = 1.0

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, tree: dict[str, Any]) -> Origin:
        """Inverse of `as_dict`; ConfigError if a field is missing or unknown."""
        return _from_dict(cls, tree, "origin")


def metric_version() -> str:
    """E.g. ``1 (torch-fidelity 0.4.0)``, without importing torch-fidelity."""
    return f"{VERSION} (torch-fidelity {metadata.version('torch-fidelity')})"


def fidelity_protocol(
    extractor, reference, *, samples: int, resizer: str, cfg_convention: str, divisor: str = "", conditions: str = ""
) -> Protocol:
    """The protocol of scores by an `Extractor` against ``reference`` (uint8 tensor or ImageSet)."""
    from uvar_tune.evaluation.fidelity import images_sha256

    return Protocol(
        metric_version=metric_version(),
        samples=samples,
        reference=images_sha256(reference),
        feature_network=extractor.name,
        weights=extractor.weights_hash,
        resizer=resizer,
        precision="float32",
        cfg_convention=cfg_convention,
        divisor=divisor,
        conditions=conditions,
    )


def held_out_protocol(tokenizer: str, images, *, resizer: str, divisor: str = "", conditions: str = "") -> Protocol:
    """The protocol of numbers on the tokens of held-out images: likelihoods depend on the tokenizer.

    Args:
        tokenizer: content hash of its weights.
        images: ImageSet or uint8 tensor; all of its images are used.
        resizer: how images were brought to their resolution.
        divisor: see `Protocol`.
        conditions: see `Protocol`.
    """
    from uvar_tune.evaluation.fidelity import images_sha256

    return Protocol(
        metric_version=metric_version(),
        samples=len(getattr(images, "images", images)),
        reference=images_sha256(images),
        feature_network="tokenizer",
        weights=tokenizer,
        resizer=resizer,
        precision="float32",
        cfg_convention="none",
        divisor=divisor,
        conditions=conditions,
    )


def require_equal(ours: Protocol, theirs: Protocol) -> None:
    """Compare two protocols.

    Raises:
        ProtocolMismatch: they differ; it names the first such field and both values.
    """
    for field in dataclasses.fields(Protocol):
        here, there = getattr(ours, field.name), getattr(theirs, field.name)
        if here != there:
            raise ProtocolMismatch(
                f"{here!r} and {there!r} differ: the numbers cannot be compared", where=f"protocol.{field.name}"
            )


def _from_dict(cls, tree: dict[str, Any], what: str):
    fields = dataclasses.fields(cls)
    missing = [f.name for f in fields if f.name not in tree and f.default is dataclasses.MISSING]
    unknown = sorted(set(tree) - {f.name for f in fields})
    if missing or unknown:
        raise ConfigError(f"missing fields {missing}, unknown fields {unknown}", where=what)
    return cls(**tree)
