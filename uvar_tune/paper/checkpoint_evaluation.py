"""One checkpoint under evaluation: its networks, and what is made of them once, when it is first asked for.

checkpoint ─ restore ─► VAR, tokenizer ─┬─ samples on seeds A at each CFG scale ─► the scale of least FID
                                        ├─ samples on seeds B at that scale ─► features ─► fidelity, diversity
                                        └─ tokens of the validation split ─► likelihood, scorecard
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from uvar_tune import seeds
from uvar_tune.config.schema import Config
from uvar_tune.console import LogFollower
from uvar_tune.data import TokenCache
from uvar_tune.errors import ConfigError
from uvar_tune.evaluation import (
    Context,
    Origin,
    evaluate,
    fidelity_protocol,
    held_out_protocol,
    open_extractor,
    to_uint8,
)
from uvar_tune.io.hashing import content_hash
from uvar_tune.model import CFG_CONVENTION, SamplingSettings, generate
from uvar_tune.paper.tables import Number
from uvar_tune.pipeline import find_checkpoint, restore, stored_config
from uvar_tune.specs import Assets
from uvar_tune.training import load_checkpoint, tokenizer_hash
from uvar_tune.trial.assets import prepare
from uvar_tune.trial.factory import load_split
from uvar_tune.trial.loss_constants import loss_constants


@dataclass(frozen=True)
class Plan:
    """What both checkpoints are evaluated under.

    Attributes:
        cache: root of the shared caches; record: file for the progress of preparing them.
        samples: generated images, None for `evaluation.samples` of the checkpoint.
        seeds: of sampling, a (the CFG scale is chosen) and b (it is told), the same for both checkpoints.
        progress: makes, for a line of text, a function to be called with (done, of how many).
    """

    cache: Path
    record: Path
    samples: int
    seeds: dict[str, int]
    device: str
    tokenizer: str | None
    progress: Callable[[str], Callable[[int, int], None]]


class LoadedCheckpoint:
    """A checkpoint's own account of itself: weights as stored, the configuration it was trained under.

    Raises ConfigError for a path that is none, or a damaged one.
    """

    def __init__(self, path: str):
        self.directory = find_checkpoint(Path(path))
        self.stored = load_checkpoint(self.directory)
        self.config = stored_config(self.stored, self.directory)


class CheckpointEvaluation:
    """A checkpoint, named by its ``method`` in the tables (baseline, ours)."""

    def __init__(self, method: str, opened: LoadedCheckpoint, plan: Plan, *, cfg_scale: float | None = None):
        self.method, self.plan, self._cfg_scale = method, plan, cfg_scale
        self.directory, stored = opened.directory, opened.stored
        broken = [name for name, value in stored.var_state.items() if not torch.isfinite(value).all()]
        if broken:
            raise ConfigError(f"weights that are not finite: {', '.join(broken[:3])}", where=str(self.directory))
        self.tokenizer = str(plan.tokenizer or stored.tokenizer["path"])
        if Path(self.tokenizer).exists() and self.tokenizer_hash != stored.tokenizer["sha256"]:
            raise ConfigError(
                f"the tokenizer at {self.tokenizer} (hash {self.tokenizer_hash[:8]}) is not the one that this "
                f"checkpoint was trained with ({stored.tokenizer['sha256'][:8]})",
                where=str(self.directory),
            )
        self.var, self.vqvae, self.about = restore(self.directory, tokenizer=self.tokenizer, device=plan.device)
        self.configuration = content_hash(opened.config.tree(exclude=("space", "verdict", "provenance")))
        self.config = opened.config.with_values({"tokenizer.path": self.tokenizer, "evaluation.samples": plan.samples})

    @cached_property
    def tokenizer_hash(self) -> str:
        return tokenizer_hash(self.tokenizer)

    @cached_property
    def assets(self) -> Assets:
        """Token caches, classifier and references: found by their content, made where they are missing."""
        with LogFollower().following(f"{self.method}, prepare", self.plan.record, images=0):
            return prepare(self.config, self.plan.cache, self.plan.record)

    @cached_property
    def splits(self) -> dict[str, Any]:
        return {split: load_split(self.config, split) for split in ("train", "validation")}

    @cached_property
    def _sampling(self) -> Context:
        """All that generated images are judged by, the images themselves left out."""
        evaluation = self.config.evaluation
        weights = evaluation.weights or self.assets.classifier
        extractor = open_extractor(evaluation.extractor, weights=weights, device=self.plan.device)
        labels_N = torch.arange(self.plan.samples) % self.var.num_classes
        return Context(
            labels_N=labels_N,
            reference=self.splits[evaluation.reference_split],
            extractor=extractor,
            cache_root=self.plan.cache / "features",
            seed=self.plan.seeds["b"],
            var=self.var,
        )

    def _draw(self, cfg_scale: float, which: str) -> Context:
        base = self.plan.seeds[which] % 2**62
        labels_N = self._sampling.labels_N
        images, tokens = generate(
            self.var,
            self.vqvae,
            labels_N.to(self.plan.device),
            SamplingSettings.from_config(self.config.inference, cfg_scale=cfg_scale),
            seeds=[base + i for i in range(len(labels_N))],
            chunk=self.config.evaluation.chunk,
            progress=self.plan.progress(f"{self.method}: samples at CFG {cfg_scale:g}, seeds {which}"),
        )
        return dataclasses.replace(
            self._sampling, generated_N3HW=to_uint8(images).cpu(), generated_tokens_NL=torch.cat(tokens, 1).cpu()
        )

    @cached_property
    def profile(self) -> dict[float, float]:
        """CFG scale → FID on seeds A; empty where the scale was given."""
        if self._cfg_scale is not None:
            return {}
        return {
            scale: evaluate(dataclasses.replace(self._draw(scale, "a"), metrics=("fid",)), ["fidelity"])["fid"]
            for scale in self.config.inference.search_cfg_scales
        }

    @cached_property
    def cfg_scale(self) -> float:
        """As given, else the one of least FID on seeds A."""
        return min(self.profile, key=self.profile.get) if self._cfg_scale is None else self._cfg_scale

    @cached_property
    def samples(self) -> Context:
        """The images that are told: seeds B at the checkpoint's own CFG scale, and their features, computed once."""
        return self._draw(self.cfg_scale, "b")

    @cached_property
    def fidelity(self) -> dict[str, float]:
        return evaluate(self.samples, ["fidelity"])

    @cached_property
    def diversity(self) -> dict[str, float]:
        knows_classes = self.assets.classifier is not None  # the feature network is a classifier of these very labels
        return evaluate(self.samples, ["density", "ssim", "codes"] + (["classes"] if knows_classes else []))

    @cached_property
    def _held_out(self) -> Context:
        tokens = TokenCache.open(self.assets.tokens["validation"])
        return Context(
            var=self.var,
            vqvae=self.vqvae,
            tokens_NL=tokens.tokens_NL,
            token_labels_N=tokens.labels_N,
            chunk=self.config.evaluation.chunk,
            device=self.plan.device,
        )

    @cached_property
    def likelihood(self) -> dict[str, float]:
        return evaluate(self._held_out, ["likelihood"])

    def scorecard(self, judge: Config) -> dict[str, float]:
        """Judged against the reference and the classes that ``judge``'s objective names (the same for both checkpoints)."""
        config = self.config.with_values({f"loss.{name}": value for name, value in judge.loss.model_dump().items()})
        variance_K, classes_V = loss_constants(config, self.assets, self.vqvae)
        return evaluate(
            dataclasses.replace(
                self._held_out, classes_V=classes_V, reference_variance_K=variance_K.tolist(), loss=config.loss
            ),
            ["scorecard"],
        )

    def sampled(self, values: dict[str, float], conditions: str = "") -> dict[str, Number]:
        """Values of the samples as numbers with their protocol and origin; `is` carries its ± along."""
        evaluation = self.config.evaluation
        protocol = fidelity_protocol(
            self._sampling.extractor,
            self._sampling.reference,
            samples=self.plan.samples,
            resizer=f"native {self.config.data.image_size}",
            cfg_convention=CFG_CONVENTION,
            conditions=conditions,
        )
        origin = self.origin(
            f"b from {self.plan.seeds['b'] % 2**62}, reference {evaluation.reference_split}", self.cfg_scale
        )
        return {
            name: Number(value, protocol, origin, values.get("is_std") if name == "is" else None)
            for name, value in values.items()
            if name != "is_std"
        }

    def told(self, values: dict[str, float], conditions: str = "", divisor: str = "") -> dict[str, Number]:
        """Values of the validation split as numbers; nothing was sampled."""
        protocol = held_out_protocol(
            self.tokenizer_hash,
            self.splits["validation"],
            resizer=f"native {self.config.data.image_size}",
            conditions=conditions,
            divisor=divisor,
        )
        return {name: Number(value, protocol, self.origin("none", None)) for name, value in values.items()}

    def origin(self, drawn: str, cfg_scale: float | None) -> Origin:
        inference = self.config.inference
        return Origin(
            configuration=self.configuration,
            checkpoint=self.about,
            seeds=drawn,
            cfg_scale=cfg_scale,
            top_k=inference.top_k,
            top_p=inference.top_p,
            temperature=inference.temperature,
        )


def sampling_seeds(study_seed: int) -> dict[str, int]:
    """Of their own phase, so that no number of a study was chosen on them."""
    return {which: seeds.derive(study_seed, "evaluate", 0, f"sampling-{which}") for which in ("a", "b")}
