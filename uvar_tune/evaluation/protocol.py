"""Protocol and origin: under which rules a number was made, and of what.

Two numbers may be compared only under equal protocols (FID is biased by the sample count and moves with reference set,
resizer and precision); the origin is recorded and may differ. Both are plain data and travel as dictionaries.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from uvar_tune.errors import ConfigError

VERSION = 1  # of the definitions in this room; a change that moves a number raises it


class ProtocolMismatch(ConfigError):
    """Numbers of unequal protocols were to be compared; ``where`` names the field."""


@dataclass(frozen=True)
class Protocol:
    """Everything that must be equal for two numbers to be comparable.

    Attributes:
        metric_version: of our definitions and of torch-fidelity, see `metric_version`.
        samples: number of generated images.
        reference: content hash of the reference images.
        feature_network, weights: name, and content hash of the loaded state.
        resizer: how images came to the resolution at which they are compared.
        precision: in which features are computed.
        cfg_convention: what a CFG scale means.
        divisor: whose errors mCE is divided by; empty for other metrics.
        conditions: what else was given, e.g. the corruption suite or the foreign images; empty where nothing was.
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
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, tree: dict[str, Any]) -> Protocol:
        """Inverse of `as_dict`; ConfigError where a field is missing or unknown."""
        return _from_dict(cls, tree, "protocol")


@dataclass(frozen=True)
class Origin:
    """Of what a number was made: configuration hash, checkpoint, sampling seeds and the inference point.

    ``cfg_scale`` is None where nothing was sampled (likelihoods).
    """

    configuration: str
    checkpoint: str
    seeds: str
    cfg_scale: float | None
    top_k: int = 0
    top_p: float = 0.0
    temperature: float = 1.0

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, tree: dict[str, Any]) -> Origin:
        """Inverse of `as_dict`; ConfigError where a field is missing or unknown."""
        return _from_dict(cls, tree, "origin")


def metric_version() -> str:
    """E.g. ``1 (torch-fidelity 0.4.0)``; imports nothing."""
    return f"{VERSION} (torch-fidelity {metadata.version('torch-fidelity')})"


def fidelity_protocol(
    extractor, reference, *, samples: int, resizer: str, cfg_convention: str, divisor: str = "", conditions: str = ""
) -> Protocol:
    """The protocol of scores by an open `Extractor` against ``reference`` (uint8 tensor or ImageSet)."""
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
    """The protocol of numbers about the tokens of held-out ``images``: likelihoods are those of one tokenizer's tokens.

    Args:
        tokenizer: content hash of its weights.
        images: ImageSet or uint8 tensor, all of which are used.
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
    """ProtocolMismatch, naming the first field in which two protocols differ and both values."""
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
