"""Sampling, scale by scale, with classifier-free guidance.

An image depends only on its label and its own seed: its uniform numbers come from its own generator, and the networks
see chunks of one fixed size, padded, because rounding in the kernels depends on the shape of the batch. The modules
hold no sampling state, so an exception leaves them usable.

Legend: B batch, L positions, K scales, p_k the side of scale k, C code dimension, V codes, S image size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from uvar_tune.config.schema import SAMPLING_BOUNDS, InferenceConfig
from uvar_tune.errors import ConfigError
from uvar_tune.model.attention import LayerCache
from uvar_tune.model.filtering import draw, guidance, validate_filter
from uvar_tune.model.scales import boundaries, positions, split
from uvar_tune.model.transformer import modulate
from uvar_tune.model.var import VAR
from uvar_tune.model.vqvae import VQVAE
from uvar_tune.seeds import generator

CHUNK = 16  # images that the networks see at once
_DEFAULT = InferenceConfig()
_MEANING = {
    "cfg_scale": "0 = guidance off",
    "cfg_ramp": "1 = VAR's ramp, 0 = the same guidance at every scale",
    "temperature": "1 = the model's own distribution",
}


@dataclass(frozen=True)
class SamplingSettings:
    """How a VAR is sampled; the defaults are those of the `inference` section.

    Attributes:
        cfg_scale: guidance at the last scale; 0 = off.
        top_k: as `filter_logits`, on the guided logits; 0 = off.
        top_p: as `filter_logits`; 0 = off.
        temperature: the logits are divided by it before they are filtered.
        cfg_ramp: exponent with which guidance grows over the scales (`CFG_CONVENTION`).
    """

    cfg_scale: float = _DEFAULT.cfg_scale
    top_k: int = _DEFAULT.top_k
    top_p: float = _DEFAULT.top_p
    temperature: float = _DEFAULT.temperature
    cfg_ramp: float = _DEFAULT.cfg_ramp

    @classmethod
    def from_config(cls, config: InferenceConfig, **point: float) -> SamplingSettings:
        """The settings of a configuration, with the values of ``point`` in place of its own."""
        values = {name: getattr(config, name) for name in cls.__dataclass_fields__}
        return cls(**{**values, **point})

    def validate(self, vocab_size: int, spell: Callable[[str], str] = str) -> None:
        """Verify all values.

        Args:
            vocab_size: V, the greatest top_k.
            spell: field name → name in the message, e.g. `as_option`.

        Raises:
            ConfigError: a value out of its bounds.
        """
        validate_filter(self.top_k, self.top_p, vocab_size, spell)
        for name, (low, high) in SAMPLING_BOUNDS.items():
            value = getattr(self, name)
            if not low <= value <= high:  # also true for NaN
                raise ConfigError(
                    f"{value} is not in {low:g} … {high:g} ({_MEANING[name]})",
                    where=spell(name),
                    nearest=f"{high if value > high else low:g}",
                )

    def describe_guidance(self) -> str:
        """The guidance, for a caption."""
        return f"CFG {self.cfg_scale:g} (0 = off), ramp {self.cfg_ramp:g}"


def as_option(name: str) -> str:
    """A field of `SamplingSettings` as an option of the command line."""
    return f"--{name.replace('_', '-')}"


class Samples(NamedTuple):
    """Images (B, 3, S, S) in [0, 1] and their tokens, a list of (B, p_k²), coarse to fine."""

    images: torch.Tensor
    tokens: list[torch.Tensor]


@dataclass(frozen=True)
class InpaintingConstraint:
    """The known part of an image, the same for all images of a batch.

    Attributes:
        tokens_1L: tokens of the known image.
        known_1L: bool; where true the token is kept, elsewhere it is sampled.
        features: per scale k the features (1, C, H, W) of the known image, accumulated up to k.
        cells_11HW: bool; where true, ``features[k]`` replaces the accumulated features after scale k, because coarse
            cells that extend beyond the known part are sampled.
    """

    tokens_1L: torch.Tensor
    known_1L: torch.Tensor
    features: list[torch.Tensor]
    cells_11HW: torch.Tensor


@torch.no_grad()
def generate(
    var: VAR,
    vqvae: VQVAE,
    labels_B: torch.Tensor | Sequence[int],
    settings: SamplingSettings,
    *,
    seeds: Sequence[int] | None = None,
    chunk: int = CHUNK,
    constraint: InpaintingConstraint | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Samples:
    """Sample one image per label.

    Args:
        var: the transformer, in evaluation mode.
        vqvae: its tokenizer.
        labels_B: 0 … num_classes-1, or num_classes (unconditional).
        settings: guidance, filters, temperature.
        seeds: one integer per image; None draws them from the global random state.
        chunk: images that the networks see at once; equal chunks give equal tokens.
        constraint: the known part of the image, which is kept.
        progress: called with (images done, images) after each chunk.

    Raises:
        ConfigError: a label, a number of seeds, a chunk or a setting out of range, or the tokenizer of another VAR.
    """
    labels_B = torch.as_tensor(labels_B)
    count = labels_B.numel()
    seeds = torch.randint(2**62, (count,)).tolist() if seeds is None else list(seeds)
    settings.validate(var.vocab_size)
    _check_request(var, labels_B, seeds, chunk)
    _check_pair(var, vqvae)
    device = var.class_emb.weight.device
    images: list[torch.Tensor] = []
    tokens: list[torch.Tensor] = []
    for start in range(0, count, chunk):
        rows = list(range(start, min(start + chunk, count)))
        padded = rows + rows[:1] * (chunk - len(rows))
        noise_BL = torch.stack([uniform_noise(seeds[i], var.scales) for i in padded])
        features, tokens_BL = _sample_chunk(
            var, vqvae, labels_B[padded].to(device), noise_BL.to(device), settings, constraint
        )
        images.append(vqvae.decode_features(features)[: len(rows)].add_(1).mul_(0.5))
        tokens.append(tokens_BL[: len(rows)])
        if progress:
            progress(rows[-1] + 1, count)
    return Samples(torch.cat(images), split(torch.cat(tokens), var.scales))


def uniform_noise(seed: int, scales: Sequence[int]) -> torch.Tensor:
    """The uniform number of each position of the image with this seed, (L,), drawn on the CPU."""
    return torch.rand(positions(scales), generator=generator(seed))


def _sample_chunk(
    var: VAR,
    vqvae: VQVAE,
    labels_B: torch.Tensor,
    noise_BL: torch.Tensor,
    settings: SamplingSettings,
    constraint: InpaintingConstraint | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (B, C, H, W) and tokens_BL of one chunk.

    With guidance the transformer sees 2B rows: conditional, then unconditional.
    """
    batch, K = len(labels_B), len(var.scales)
    guided = settings.cfg_scale > 0
    if guided:
        labels_B = torch.cat((labels_B, torch.full_like(labels_B, var.num_classes)))
    decoder = _ScaleDecoder(var, labels_B)
    features, tokens = vqvae.quantize.zeros(batch), []
    x_BlC = decoder.first_input()
    for k, (start, end) in enumerate(boundaries(var.scales)):
        states_BlC = decoder.states(x_BlC)
        if guided:  # the head is affine and the weights sum to 1: guiding its input halves its work
            t = guidance(settings.cfg_scale, k, K, settings.cfg_ramp)
            states_BlC = (1 + t) * states_BlC[:batch] - t * states_BlC[batch:]
        logits_BlV = var.head(states_BlC).float() / settings.temperature
        drawn_Bl = draw(logits_BlV, noise_BL[:, start:end], settings.top_k, settings.top_p)
        if constraint is not None:
            drawn_Bl = torch.where(constraint.known_1L[:, start:end], constraint.tokens_1L[:, start:end], drawn_Bl)
        tokens.append(drawn_Bl)
        features.add_(vqvae.quantize.decode_scale(drawn_Bl, k))
        if constraint is not None:
            features = torch.where(constraint.cells_11HW, constraint.features[k], features)
        if k + 1 < K:
            x_BlC = decoder.next_input(vqvae.quantize.next_input(features, k + 1), k + 1)
    return features, torch.cat(tokens, dim=1)


class _ScaleDecoder:
    """One pass of the transformer over the scales, with cached keys and values and modulations computed once."""

    def __init__(self, var: VAR, labels_N: torch.Tensor):
        self.var, self.position_1LC, self.bounds = var, var.position_embedding(), boundaries(var.scales)
        self.class_NC = var.class_emb(labels_N)
        condition = var.shared_ada_lin(self.class_NC)
        self.modulations = [block.modulation(condition) for block in var.blocks]
        self.head_modulation = var.head_nm.modulation(self.class_NC)
        self.caches = [LayerCache(self.bounds[-1][0]) for _ in var.blocks]

    def first_input(self) -> torch.Tensor:
        """(N, p_1², C)."""
        return self.var.start_tokens(self.class_NC) + self.position_1LC[:, : self.var.first]

    def next_input(self, features_BlC: torch.Tensor, k: int) -> torch.Tensor:
        """(N, p_k², C) from the pooled features, repeated for the unconditional half."""
        start, end = self.bounds[k]
        x_BlC = self.var.word_embed(features_BlC) + self.position_1LC[:, start:end]
        return x_BlC.repeat(len(self.class_NC) // len(features_BlC), 1, 1)

    def states(self, x_NlC: torch.Tensor) -> torch.Tensor:
        """Input of the head from the inputs of the next scale."""
        for block, modulation, cache in zip(self.var.blocks, self.modulations, self.caches, strict=True):
            x_NlC = block.run(x_NlC, modulation, cache)
        return modulate(x_NlC.float(), *self.head_modulation)


def _check_request(var: VAR, labels_B: torch.Tensor, seeds: list[int], chunk: int) -> None:
    if labels_B.ndim != 1 or labels_B.is_floating_point() or not len(labels_B):
        raise ConfigError(
            f"labels of shape {tuple(labels_B.shape)} and type {labels_B.dtype}, expected (B,) integers", where="labels"
        )
    var.check_labels(labels_B)
    if len(seeds) != len(labels_B):
        raise ConfigError(f"{len(seeds)} seeds for {len(labels_B)} labels", where="seeds")
    if chunk < 1:
        raise ConfigError(f"chunk {chunk} is below 1", where="chunk", nearest="1")


def _check_pair(var: VAR, vqvae: VQVAE) -> None:
    of_var, of_vqvae = ((net.scales, net.vocab_size, net.code_dim) for net in (var, vqvae))
    if of_var != of_vqvae:
        raise ConfigError(
            f"the VAR has (scales, vocabulary, code dimension) {of_var}, the tokenizer {of_vqvae}", where="vqvae"
        )
