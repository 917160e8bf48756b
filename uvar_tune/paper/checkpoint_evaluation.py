"""One checkpoint under evaluation: its networks and its scores, each computed once, at first use.

checkpoint ─► restore ─► VAR, tokenizer ─┬─► CheckpointScorer: search under selection seeds
                                         │     └─► samples under evaluation seeds ─► fidelity, diversity
                                         └─► tokens of the validation split ─► likelihood, scorecard
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from uvar_tune import seeds
from uvar_tune.config.schema import Config, LossConfig
from uvar_tune.config.space import searched_inference_entries
from uvar_tune.config.space_entry import SpaceEntry
from uvar_tune.console import LogFollower
from uvar_tune.errors import ConfigError
from uvar_tune.evaluation import FIDELITY_METRICS, Origin, held_out_protocol
from uvar_tune.io.hashing import content_hash
from uvar_tune.paper.tables import Number
from uvar_tune.pipeline import find_checkpoint, restore, stored_config
from uvar_tune.seeds import EVALUATION, SAMPLING
from uvar_tune.specs import Assets
from uvar_tune.study_dir import StudyDirectory
from uvar_tune.training import load_checkpoint, tokenizer_hash
from uvar_tune.trial.assets import prepare
from uvar_tune.trial.factory import load_split
from uvar_tune.trial.scoring import CheckpointScorer, Ranks, ScoringObserver, SelectedSamples

_STUDY_FILE = "study.yaml"
_STUDY_LEVELS = 6  # parents of a checkpoint among which its study is: STUDY/trials/00007/checkpoints/000000001280


@dataclass(frozen=True)
class EvaluationSettings:
    """What all checkpoints of a comparison are evaluated under.

    Attributes:
        cache: root of the shared caches.
        record: file to which the progress of preparing them is appended.
        samples: number of generated images.
        seeds: purpose → sampling seed, the same for all checkpoints.
        device: of the networks.
        tokenizer: where the tokenizer is now; None for where the checkpoint says.
        progress: makes, of a text and a total, a function to be called with (done, total).
    """

    cache: Path
    record: Path
    samples: int
    seeds: dict[str, int]
    device: str
    tokenizer: str | None
    progress: Callable[[str, int], Callable[[int, int], None]]


class LoadedCheckpoint:
    """A checkpoint as stored: its directory, its weights, the configuration it was trained under.

    Args:
        path: checkpoint directory, or directory of a trial.

    Raises:
        ConfigError: there is no checkpoint, or it is damaged.
    """

    def __init__(self, path: str):
        self.directory = find_checkpoint(Path(path))
        self.stored = load_checkpoint(self.directory)
        self.config = stored_config(self.stored, self.directory)

    @cached_property
    def inference_entries(self) -> dict[str, SpaceEntry]:
        """Inference parameters that the space of its study names, by name without the section.

        They are in the study's configuration, not in the checkpoint's: {} for a checkpoint outside of a study.
        """
        for parent in self.directory.resolve().parents[:_STUDY_LEVELS]:
            if (parent / _STUDY_FILE).is_file():
                return searched_inference_entries(StudyDirectory(parent.parent, parent.name).load_config())
        return {}


class _SamplingProgress(ScoringObserver):
    def __init__(self, method: str, settings: EvaluationSettings):
        self._method, self._settings = method, settings

    def on_sampling(self, point: Mapping[str, float], seeds: str) -> Callable[[int, int], None]:
        text = ", ".join(f"{parameter_label(name)} {value:g}" for name, value in point.items())
        return self._settings.progress(f"{self._method}: samples at {text}, {seeds} seeds", self._settings.samples)


class CheckpointEvaluation:
    """Scores of a checkpoint as numbers with protocol and origin.

    Args:
        method: its name in the tables (baseline, ours).
        checkpoint: the weights and their configuration.
        settings: shared by all checkpoints of the comparison.
        cfg_scale: the CFG scale to score at; None searches inference points as the checkpoint's study did
            (`inference.search`, `study.metric`).

    Raises:
        ConfigError: weights that are not finite, or another tokenizer than the checkpoint was trained with.
    """

    def __init__(
        self, method: str, checkpoint: LoadedCheckpoint, settings: EvaluationSettings, *, cfg_scale: float | None = None
    ):
        self.method, self.settings, self._checkpoint = method, settings, checkpoint
        self.directory, stored = checkpoint.directory, checkpoint.stored
        not_finite = [name for name, value in stored.var_state.items() if not torch.isfinite(value).all()]
        if not_finite:
            raise ConfigError(f"weights that are not finite: {', '.join(not_finite[:3])}", where=str(self.directory))
        self.tokenizer = str(settings.tokenizer or stored.tokenizer["path"])
        if Path(self.tokenizer).exists() and self.tokenizer_hash != stored.tokenizer["sha256"]:
            raise ConfigError(
                f"the tokenizer at {self.tokenizer} (hash {self.tokenizer_hash[:8]}) is not the one that this "
                f"checkpoint was trained with ({stored.tokenizer['sha256'][:8]})",
                where=str(self.directory),
            )
        self.var, self.vqvae, self.description = restore(
            self.directory, tokenizer=self.tokenizer, device=settings.device
        )
        self.configuration = content_hash(checkpoint.config.tree(exclude=("space", "verdict", "provenance")))
        self.config = _evaluation_config(checkpoint.config, self.tokenizer, settings.samples, cfg_scale)

    @cached_property
    def tokenizer_hash(self) -> str:
        """Content hash of the tokenizer."""
        return tokenizer_hash(self.tokenizer)

    @cached_property
    def assets(self) -> Assets:
        """Token caches, classifier and references, from the cache or made now."""
        with LogFollower().following(f"{self.method}, prepare", self.settings.record, images=0):
            return prepare(self.config, self.settings.cache, self.settings.record)

    @cached_property
    def splits(self) -> dict[str, Any]:
        """Split → its images."""
        return {split: load_split(self.config, split) for split in ("train", "validation")}

    @cached_property
    def scorer(self) -> CheckpointScorer:
        """The scorer that trials use."""
        return CheckpointScorer(
            self.config,
            self.assets,
            self.var,
            self.vqvae,
            self.settings.seeds,
            entries=self._checkpoint.inference_entries,
            ranks=Ranks(device=self.settings.device),
            observer=_SamplingProgress(self.method, self.settings),
        )

    @cached_property
    def selected(self) -> SelectedSamples:
        """The images under evaluation seeds at the checkpoint's inference point, with their features."""
        return self.scorer.select()

    @cached_property
    def diversity(self) -> dict[str, float]:
        """Density, coverage, SSIM and codes of the selected images."""
        return self.scorer.diversity(self.selected, ssim=True)

    @cached_property
    def likelihood(self) -> dict[str, float]:
        """Likelihood and calibration of the validation split."""
        return self.scorer.likelihood()

    def scorecard(self, loss: LossConfig) -> dict[str, float]:
        """The scorecard against the reference and the partition of ``loss`` (the same for both checkpoints)."""
        return self.scorer.scorecard(loss)

    def sample_numbers(self, values: Mapping[str, float]) -> dict[str, Number]:
        """Values of the selected images with protocol and origin; `is` gets its standard deviation as spread."""
        protocol = self.scorer.sample_scorer.protocol(self.settings.samples)
        seed = self.settings.seeds[SAMPLING[EVALUATION]] % 2**62
        origin = self.origin(
            f"{EVALUATION} from {seed}, reference {self.config.evaluation.reference_split}", self.selected.point
        )
        return {
            name: Number(value, protocol, origin, values.get("is_std") if name == "is" else None)
            for name, value in values.items()
            if name != "is_std"
        }

    def held_out_numbers(
        self, values: Mapping[str, float], conditions: str = "", divisor: str = ""
    ) -> dict[str, Number]:
        """Values of the validation split with protocol and origin; nothing was sampled for them."""
        protocol = held_out_protocol(
            self.tokenizer_hash,
            self.splits["validation"],
            resizer=f"native {self.config.data.image_size}",
            conditions=conditions,
            divisor=divisor,
        )
        return {name: Number(value, protocol, self.origin("none")) for name, value in values.items()}

    def origin(self, drawn: str, point: Mapping[str, float] | None = None) -> Origin:
        """The origin of a number.

        Args:
            drawn: the seeds that it was sampled under.
            point: the inference point of the samples; None if nothing was sampled.
        """
        inference = self.config.inference
        parameters = {name: getattr(inference, name) for name in ("top_k", "top_p", "temperature", "cfg_ramp")}
        return Origin(
            configuration=self.configuration,
            checkpoint=self.description,
            seeds=drawn,
            **{"cfg_scale": None, **parameters, **(point or {})},
        )


def parameter_label(name: str) -> str:
    """An inference parameter as texts name it."""
    return {"cfg_scale": "CFG", "cfg_ramp": "CFG ramp"}.get(name, name)


def sampling_seeds(study_seed: int) -> dict[str, int]:
    """Sampling seeds of the phase `evaluate`, under which no number of the study was selected."""
    return {purpose: seeds.derive(study_seed, "evaluate", 0, purpose) for purpose in SAMPLING.values()}


def _evaluation_config(config: Config, tokenizer: str, samples: int, cfg_scale: float | None) -> Config:
    """The stored configuration with the settings of this evaluation; rungs, which are not scored, are left out."""
    values: dict[str, Any] = {
        "tokenizer.path": tokenizer,
        "evaluation.samples": samples,
        "evaluation.metrics": FIDELITY_METRICS,
    }
    tree = config.model_copy(update={"study": config.study.model_copy(update={"pruner": "none", "rungs": ()})})
    if cfg_scale is not None:
        values |= {"inference.search": "joint", "inference.cfg_scale": cfg_scale}
    try:
        return tree.with_values(values)
    except ConfigError as error:
        raise ConfigError(error.message, where="the settings of this evaluation", nearest=error.nearest) from None
