"""Sampling, scale by scale, with classifier-free guidance.

An image depends on its label and its own seed only: its uniform numbers come from its own generator, and the networks
see chunks of one fixed size, padded, because kernels round by batch shape. Nothing is kept in the modules, so an
exception leaves them usable.

Legend: B batch, L positions, K scales, p_k the side of scale k, C code dimension, V codes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from uvar_tune.errors import ConfigError
from uvar_tune.model.attention import LayerCache
from uvar_tune.model.filtering import check_filter, draw, guidance
from uvar_tune.model.scales import boundaries, positions, split
from uvar_tune.model.transformer import modulate
from uvar_tune.model.var import VAR
from uvar_tune.model.vqvae import VQVAE
from uvar_tune.seeds import generator

CHUNK = 16
# Least and greatest value, and what they mean. Beyond them nothing is sampled otherwise, and float32 overflows in the end.
BOUNDS = {
    "cfg_scale": (0.0, 100.0, "0 = guidance off"),
    "cfg_ramp": (0.0, 100.0, "1 = VAR's ramp, 0 = the same guidance at every scale"),
    "temperature": (1e-4, 100.0, "1 = the model's own distribution"),
}


@dataclass(frozen=True)
class Inference:
    """How the VAR is sampled: guidance and its growth over the scales, filters, temperature of the logits."""

    cfg_scale: float
    top_k: int = 0
    top_p: float = 0.0
    temperature: float = 1.0
    cfg_ramp: float = 1.0

    def check(self, vocabulary: int, spell: Callable[[str], str] = str) -> None:
        """ConfigError for a value that means nothing; ``spell`` makes of a field's name what its user calls it."""
        check_filter(self.top_k, self.top_p, vocabulary, spell)
        for name, (low, high, meaning) in BOUNDS.items():
            value = getattr(self, name)
            if not low <= value <= high:  # NaN is nowhere
                raise ConfigError(
                    f"{value} is not in {low:g} … {high:g} ({meaning})",
                    where=spell(name),
                    nearest=f"{high if value > high else low:g}",
                )

    def about(self) -> str:
        """The guidance in words."""
        return f"CFG {self.cfg_scale:g} (0 = off), ramp {self.cfg_ramp:g}"


def as_option(name: str) -> str:
    """A field of `Inference` as the doors spell it."""
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True)
class Known:
    """What is given of the image to be made, the same for all of a batch; the rest is sampled.

    ``tokens_1L`` hold where ``known_1L``. In the ``cells_11HW`` of the feature map, what is explained after scale k is
    ``features[k]`` (1, C, H, W), whatever was sampled for the coarse cells that reach beyond the known region.
    """

    tokens_1L: torch.Tensor
    known_1L: torch.Tensor
    features: list[torch.Tensor]
    cells_11HW: torch.Tensor


def generate(
    var: VAR,
    vqvae: VQVAE,
    labels_B,
    *,
    cfg_scale: float,
    top_k: int = 0,
    top_p: float = 0.0,
    temperature: float = 1.0,
    cfg_ramp: float = 1.0,
    seeds: Sequence[int] | None = None,
    chunk: int | None = None,
    return_tokens: bool = False,
    progress: Callable[[int, int], None] | None = None,
):
    """Images in [0, 1], (B, 3, S, S), one for each label.

    Args:
        labels_B: 0 … num_classes-1, or num_classes (unconditional); a tensor or a sequence.
        cfg_scale: guidance at the last scale; 0 leaves it out.
        cfg_ramp: how guidance grows to it (`CFG_CONVENTION`): 1 linearly from 0 at the first scale, 0 not at all.
        top_k, top_p: as `filter_logits`, on the guided logits.
        temperature: the logits are divided by it before they are filtered.
        seeds: one integer for each image; None draws them from the global random state.
        chunk: images that the networks see at once (default 16). The tokens are the same for the same chunk.
        return_tokens: return (images, tokens), tokens a list of (B, p_k²).
        progress: called with (images done, images) after each chunk.

    Raises:
        ConfigError: a label, seed count, chunk or inference value out of range, or a tokenizer that is not the VAR's.
    """
    labels_B = torch.as_tensor(labels_B)
    images, tokens_BL = sample(
        var,
        vqvae,
        labels_B,
        Inference(cfg_scale, top_k, top_p, temperature, cfg_ramp),
        seeds=seeds,
        chunk=chunk,
        progress=progress,
    )
    return (images, split(tokens_BL, var.scales)) if return_tokens else images


@torch.no_grad()
def sample(
    var: VAR,
    vqvae: VQVAE,
    labels_B: torch.Tensor,
    inference: Inference,
    *,
    seeds: Sequence[int] | None,
    chunk: int | None,
    known: Known | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(images in [0, 1], tokens_BL), as `generate`; the tokens that are ``known`` are kept as given."""
    count, chunk = labels_B.numel(), CHUNK if chunk is None else chunk
    seeds = torch.randint(2**62, (count,)).tolist() if seeds is None else list(seeds)
    _check(var, vqvae, labels_B, inference, seeds, chunk)
    device = var.class_emb.weight.device
    images: list[torch.Tensor] = []
    tokens: list[torch.Tensor] = []
    for start in range(0, count, chunk):
        mine = list(range(start, min(start + chunk, count)))
        padded = mine + mine[:1] * (chunk - len(mine))
        noise_BL = torch.stack([uniforms(seeds[i], var.scales) for i in padded])
        features, tokens_BL = _sample_chunk(
            var, vqvae, labels_B[padded].to(device), noise_BL.to(device), inference, known
        )
        images.append(vqvae.decode_features(features)[: len(mine)].add_(1).mul_(0.5))
        tokens.append(tokens_BL[: len(mine)])
        if progress:
            progress(mine[-1] + 1, count)
    return torch.cat(images), torch.cat(tokens)


def uniforms(seed: int, scales: Sequence[int]) -> torch.Tensor:
    """The uniform number of each position of the image of this seed, (L,), drawn on the CPU."""
    return torch.rand(positions(scales), generator=generator(seed))


def _sample_chunk(
    var: VAR, vqvae: VQVAE, labels_B: torch.Tensor, noise_BL: torch.Tensor, inference: Inference, known: Known | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(features (B, C, H, W), tokens_BL) of one chunk. With guidance the transformer sees 2B: conditional, unconditional."""
    batch, K = len(labels_B), len(var.scales)
    guided = inference.cfg_scale > 0
    if guided:
        labels_B = torch.cat((labels_B, torch.full_like(labels_B, var.num_classes)))
    decoder = _Decoder(var, labels_B)
    features, tokens = vqvae.quantize.empty(batch), []
    x_BlC = decoder.start()
    for k, (start, end) in enumerate(boundaries(var.scales)):
        states_BlC = decoder.states(x_BlC)
        if guided:  # the head is affine and the weights sum to 1: guiding its input halves its work
            t = guidance(inference.cfg_scale, k, K, inference.cfg_ramp)
            states_BlC = (1 + t) * states_BlC[:batch] - t * states_BlC[batch:]
        logits_BlV = var.head(states_BlC).float() / inference.temperature
        drawn_Bl = draw(logits_BlV, noise_BL[:, start:end], inference.top_k, inference.top_p)
        if known is not None:
            drawn_Bl = torch.where(known.known_1L[:, start:end], known.tokens_1L[:, start:end], drawn_Bl)
        tokens.append(drawn_Bl)
        features.add_(vqvae.quantize.explain(drawn_Bl, k))
        if known is not None:
            features = torch.where(known.cells_11HW, known.features[k], features)
        if k + 1 < K:
            x_BlC = decoder.inputs(vqvae.quantize.next_input(features, k + 1), k + 1)
    return features, torch.cat(tokens, dim=1)


class _Decoder:
    """One pass through the scales: what is the same at all of them is made once, keys and values are kept."""

    def __init__(self, var: VAR, labels_N: torch.Tensor):
        self.var, self.places_1LC, self.bounds = var, var.places(), boundaries(var.scales)
        self.class_NC = var.class_emb(labels_N)
        condition = var.shared_ada_lin(self.class_NC)
        self.modulations = [block.modulation(condition) for block in var.blocks]
        self.head_modulation = var.head_nm.modulation(self.class_NC)
        self.caches = [LayerCache(self.bounds[-1][0]) for _ in var.blocks]

    def start(self) -> torch.Tensor:
        return self.var.start(self.class_NC) + self.places_1LC[:, : self.var.first]

    def inputs(self, features_BlC: torch.Tensor, k: int) -> torch.Tensor:
        start, end = self.bounds[k]
        x_BlC = self.var.word_embed(features_BlC) + self.places_1LC[:, start:end]
        return x_BlC.repeat(len(self.class_NC) // len(features_BlC), 1, 1)

    def states(self, x_NlC: torch.Tensor) -> torch.Tensor:
        """What the head is applied to, from the inputs of the next scale."""
        for block, modulation, cache in zip(self.var.blocks, self.modulations, self.caches, strict=True):
            x_NlC = block.run(x_NlC, modulation, cache)
        return modulate(x_NlC.float(), *self.head_modulation)


def _check(var: VAR, vqvae: VQVAE, labels_B: torch.Tensor, inference: Inference, seeds: list[int], chunk: int) -> None:
    inference.check(var.vocab_size)
    if labels_B.ndim != 1 or labels_B.is_floating_point() or not len(labels_B):
        raise ConfigError(
            f"labels of shape {tuple(labels_B.shape)} and type {labels_B.dtype}, expected (B,) integers", where="labels"
        )
    var.check_labels(labels_B)
    if len(seeds) != len(labels_B):
        raise ConfigError(f"{len(seeds)} seeds for {len(labels_B)} labels", where="seeds")
    if chunk < 1:
        raise ConfigError(f"chunk {chunk} is below 1", where="chunk", nearest="1")
    ours, theirs = (
        (vqvae.scales, vqvae.vocab_size, vqvae.code_dim),
        (var.scales, var.vocab_size, var.word_embed.in_features),
    )
    if ours != theirs:
        raise ConfigError(
            f"the VAR has (scales, vocabulary, code dimension) {theirs}, the tokenizer {ours}", where="vqvae"
        )
