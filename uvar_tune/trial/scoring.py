"""Scores of one checkpoint, the same for trials, final runs and `evaluate`.

    points ─► `ImageSampler`, all ranks ─► `SampleScorer`, rank 0 ─► the best point under selection seeds
                                                                └──► its scores under evaluation seeds
    held-out tokens ─► likelihood, calibration, scorecard, gradient shares

Sampling is sharded by image index: image i is drawn from the same seed on any rank, so the number of ranks moves no
score.

Legend: N samples, H and W image size, L positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from uvar_tune.config.schema import Config, LossConfig
from uvar_tune.config.space_entry import SpaceEntry
from uvar_tune.data import TokenCache
from uvar_tune.data.order import spread_rows
from uvar_tune.evaluation import (
    Features,
    MetricInputs,
    Protocol,
    evaluate,
    fidelity_protocol,
    open_extractor,
    reference_features,
    save_grid,
    scores_from_features,
    to_uint8,
)
from uvar_tune.evaluation.cfg_search import InferencePointSearch, SearchResult
from uvar_tune.evaluation.fidelity import check_sets
from uvar_tune.metrics import metric
from uvar_tune.model import CFG_CONVENTION, SamplingSettings, generate
from uvar_tune.model.scales import split
from uvar_tune.objective import gradient_shares
from uvar_tune.seeds import EVALUATION, SAMPLING, SELECTION
from uvar_tune.specs import Assets
from uvar_tune.tracking.metrics_log import MetricsLog
from uvar_tune.trial.factory import load_split
from uvar_tune.trial.loss_constants import loss_constants

SHARE_IMAGES = 128  # held-out images on which gradient shares are measured
GRID_IMAGES = 200  # at most, in the grid of samples of a trial
_COMPUTED_BY = {"f1": ("precision", "recall"), "is_std": ("is",)}  # scores that come with other metrics
_SHARES = ("second_order", "semantic_entropy", "second_order_cosine", "semantic_entropy_cosine")


@dataclass(frozen=True)
class Ranks:
    """This process among those that score one checkpoint together."""

    rank: int = 0
    world_size: int = 1
    device: torch.device | str = "cpu"

    def gather(self, part: torch.Tensor) -> torch.Tensor:
        """The parts of all ranks, concatenated in rank order, on every rank."""
        if self.world_size == 1:
            return part
        parts = [torch.empty_like(part) for _ in range(self.world_size)]
        torch.distributed.all_gather(parts, part.contiguous())
        return torch.cat(parts)

    def from_rank_0(self, value: Any) -> Any:
        """Rank 0's plain value, on every rank."""
        if self.world_size == 1:
            return value
        shared = [value]
        torch.distributed.broadcast_object_list(shared, src=0)
        return shared[0]


class ScoringObserver:
    """Follows a scorer on rank 0; both methods do nothing unless overridden."""

    def on_sampling(self, point: Mapping[str, float], seeds: str) -> Callable[[int, int], None] | None:
        """Before images are drawn; the function returned is called with (images done, images)."""

    def on_score(self, row: Mapping[str, Any]) -> None:
        """After a point is scored: its parameters, ``seeds`` and metrics."""


@dataclass(frozen=True)
class Samples:
    """Generated images in index order, complete on every rank.

    Attributes:
        images_N3HW: uint8, on the CPU.
        tokens_NL: their tokens, on the CPU.
        labels_N: the labels under which they were sampled.
    """

    images_N3HW: torch.Tensor
    tokens_NL: torch.Tensor
    labels_N: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels_N)


class ImageSampler:
    """Draws images of one network; each rank draws its share.

    Args:
        config: inference parameters that a point does not name.
        var: the transformer.
        vqvae: the tokenizer.
        labels_N: label of each image, see `sample_labels`.
        ranks: the processes that draw together.
    """

    def __init__(self, config: Config, var, vqvae, labels_N: torch.Tensor, *, ranks: Ranks | None = None):
        self._config, self._var, self._vqvae = config, var, vqvae
        self._ranks, self.labels_N = ranks or Ranks(), labels_N

    def __call__(
        self, point: Mapping[str, float], seed: int, progress: Callable[[int, int], None] | None = None
    ) -> Samples:
        """Images at an inference point; image i is drawn from ``seed`` + i."""
        ranks, count = self._ranks, len(self.labels_N)
        share = -(-count // ranks.world_size)
        rows = torch.arange(ranks.rank * share, (ranks.rank + 1) * share) % count  # padded: shares of equal length
        base = seed % 2**62
        images, tokens = generate(
            self._var,
            self._vqvae,
            self.labels_N[rows].to(ranks.device),
            SamplingSettings.from_config(self._config.inference, **point),
            seeds=[base + int(row) for row in rows],
            chunk=self._config.evaluation.chunk,
            progress=progress,
        )
        tokens_NL = ranks.gather(torch.cat(tokens, 1))[:count].cpu()
        return Samples(ranks.gather(to_uint8(images))[:count].cpu(), tokens_NL, self.labels_N)


def sample_labels(config: Config, assets: Assets, count: int) -> torch.Tensor:
    """Labels of ``count`` samples in the class proportions of the reference split, see `proportional_labels`."""
    reference = TokenCache.open(assets.tokens[config.evaluation.reference_split])
    return proportional_labels(reference.labels_N, count, assets.num_classes)


def proportional_labels(reference_labels_M, count: int, num_classes: int) -> torch.Tensor:
    """Labels in the class proportions of a reference set, by largest remainders; deterministic.

    The labels cycle through the classes, leaving out a class once it has its number. For a balanced reference and a
    multiple of the classes this is 0, 1, …, Y-1, 0, 1, ….

    Args:
        reference_labels_M: labels of the reference set.
        count: number of labels.
        num_classes: Y; classes without reference images get no label.
    """
    sizes_Y = torch.bincount(torch.as_tensor(reference_labels_M).long(), minlength=num_classes)
    quotas_Y = sizes_Y * count // sizes_Y.sum()
    remainders_Y = sizes_Y * count % sizes_Y.sum()
    largest = remainders_Y.argsort(descending=True, stable=True)[: count - int(quotas_Y.sum())]
    quotas_Y[largest] += 1
    labels_N = torch.arange(num_classes).repeat_interleave(quotas_Y)
    rounds_N = torch.cat([torch.arange(int(quota)) for quota in quotas_Y])
    return labels_N[rounds_N.argsort(stable=True)]


class SampleScorer:
    """Scores samples against the reference split; opens the feature network and the reference features once.

    Args:
        config: feature network, reference split and metrics of `evaluation`.
        assets: classifier and caches.
        seed: of KID's subsets and of IS's splits.
        device: of the feature network.
    """

    def __init__(self, config: Config, assets: Assets, *, seed: int, device="cpu"):
        evaluation = config.evaluation
        self._config, self._assets, self._seed = config, assets, seed
        self.reference = load_split(config, evaluation.reference_split)
        self.extractor = open_extractor(
            evaluation.extractor, weights=evaluation.weights or assets.classifier, device=str(device)
        )
        self._classifies = assets.classifier is not None  # the feature network is a classifier of these very labels
        self._reference = reference_features(self.reference, self.extractor, cache_root=Path(assets.cache) / "features")

    def protocol(self, count: int) -> Protocol:
        """The protocol of scores of ``count`` samples."""
        return fidelity_protocol(
            self.extractor,
            self.reference,
            samples=count,
            resizer=f"native {self._config.data.image_size}",
            cfg_convention=CFG_CONVENTION,
        )

    def features(self, samples: Samples) -> Features:
        """Features of the images; ConfigError for images that cannot be compared with the reference."""
        check_sets(samples.images_N3HW, self.reference)
        return self.extractor(samples.images_N3HW)

    def fidelity(self, features: Features, *, only: str | None = None) -> dict[str, float]:
        """The metrics of `evaluation.metrics`.

        Args:
            features: of the images.
            only: a metric; no other is computed than it and those computed with it (`f1` needs precision and recall).
        """
        metrics = self._config.evaluation.metrics if only is None else _COMPUTED_BY.get(only, (only,))
        return scores_from_features(features, self._reference, metrics=metrics, seed=self._seed)

    def diversity(self, samples: Samples, features: Features, vqvae, *, ssim: bool = False) -> dict[str, float]:
        """Density, coverage, codes in use, copies of training images, the Fréchet distance to held-out images.

        With a classifier also conditional accuracy; with ``ssim`` pairwise SSIM.
        """
        families = ["density", *(["classes"] if self._classifies else []), "codes", *(["ssim"] if ssim else [])]
        inputs = self._inputs(features, samples, vqvae)
        tokens = {split: TokenCache.open(self._assets.tokens[split]) for split in ("train", "validation")}
        copies = replace(
            inputs,
            training_tokens_ML=tokens["train"].tokens_NL,
            training_labels_M=tokens["train"].labels_N,
            held_out_tokens_ML=tokens["validation"].tokens_NL,
            held_out_labels_M=tokens["validation"].labels_N,
        )
        return evaluate(inputs, families) | evaluate(copies, ["copies"]) | self._held_out_fidelity(inputs)

    def _held_out_fidelity(self, inputs: MetricInputs) -> dict[str, float]:
        """`fid/held_out`: the Fréchet distance to the validation split, where scores refer to the training split."""
        if self._config.evaluation.reference_split != "train" or "fid" not in inputs.metrics:
            return {}
        held_out = load_split(self._config, "validation")
        reference = reference_features(held_out, self.extractor, cache_root=Path(self._assets.cache) / "features")
        fid = evaluate(replace(inputs, reference=reference, metrics=("fid",)), ["fidelity"])["fid"]
        return {"fid/held_out": fid}

    def _inputs(self, features: Features, samples: Samples | None = None, vqvae=None) -> MetricInputs:
        return MetricInputs(
            features=features,
            reference=self._reference,
            metrics=self._config.evaluation.metrics,
            seed=self._seed,
            images_N3HW=samples and samples.images_N3HW,
            labels_N=samples and samples.labels_N,
            tokens_NL=samples and samples.tokens_NL,
            vqvae=vqvae,
        )


@dataclass(frozen=True)
class SelectedSamples:
    """The samples of the selected inference point under evaluation seeds.

    Attributes:
        point: parameter → value.
        samples: the images.
        features: of the images; None off rank 0.
        fidelity: metric → score under evaluation seeds; empty off rank 0.
        rows: all scored points in order, each with its parameters, ``seeds`` and metrics; empty off rank 0.
        search: the search over `study.metric`; None off rank 0.
    """

    point: dict[str, float]
    samples: Samples
    features: Features | None = None
    fidelity: dict[str, float] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    search: SearchResult | None = None


class CheckpointScorer:
    """Scores one network. All ranks call each method; the scores are on rank 0.

    Args:
        config: `inference` names the search over inference points, `evaluation` the metrics, `study.metric` the score
            that selects.
        assets: shared artifacts of the study.
        var: the transformer with the weights to score.
        vqvae: the tokenizer.
        seeds: purpose → seed: `sampling-a` (selection), `sampling-b` (evaluation), and further `sampling-b…`.
        entries: inference parameters of the space that are searched in addition, by name without the section.
        ranks: the processes that score together.
        observer: follows sampling and scores on rank 0.
    """

    def __init__(
        self,
        config: Config,
        assets: Assets,
        var,
        vqvae,
        seeds: Mapping[str, int],
        *,
        entries: Mapping[str, SpaceEntry] | None = None,
        ranks: Ranks | None = None,
        observer: ScoringObserver | None = None,
    ):
        self.config, self.assets, self.var, self.vqvae = config, assets, var, vqvae
        self._seeds, self._entries = seeds, entries or {}
        self._ranks, self._observer = ranks or Ranks(), observer or ScoringObserver()

    @property
    def is_rank_0(self) -> bool:
        """Whether scores are computed here."""
        return self._ranks.rank == 0

    @cached_property
    def sample_scorer(self) -> SampleScorer:
        """Opened at first use, on rank 0: it reads the reference images and the feature network."""
        return SampleScorer(self.config, self.assets, seed=self._seeds[SAMPLING[EVALUATION]], device=self._ranks.device)

    def rung_value(self) -> float | None:
        """The best `study.rung_metric` of `study.rung_samples` images over the coarse CFG scales; None off rank 0.

        The network keeps its training mode.
        """
        study, inference, training = self.config.study, self.config.inference, self.var.training
        scales = inference.search_cfg_scales if inference.searches_guidance else (inference.cfg_scale,)
        self.var.eval()
        draw, values = self._sampler(study.rung_samples), []
        for cfg_scale in scales:
            samples = draw({"cfg_scale": cfg_scale}, self._seeds[SAMPLING[SELECTION]])
            if self.is_rank_0:
                features = self.sample_scorer.features(samples)
                scores = self.sample_scorer.fidelity(features, only=study.pruning_metric)
                values.append(scores[study.pruning_metric])
        self.var.train(training)
        if not values:
            return None
        return min(values) if metric(study.pruning_metric).direction == "minimize" else max(values)

    def select(self) -> SelectedSamples:
        """Search the inference point and score it under evaluation seeds (see `evaluation.cfg_search`)."""
        self.var.eval()
        draw, rows = self._sampler(self.config.evaluation.samples), []
        search = InferencePointSearch.from_config(self.config, self._entries) if self.is_rank_0 else None
        selected: dict[str, Any] = {}
        while (row := self._ranks.from_rank_0(search.ask() if search else None)) is not None:
            point = {name: value for name, value in row.items() if name != "seeds"}
            progress = self._observer.on_sampling(point, row["seeds"]) if search else None
            samples = draw(point, self._seeds[SAMPLING[row["seeds"]]], progress)
            selected = {"point": point, "samples": samples}
            if search:
                features = self.sample_scorer.features(samples)
                only = None if row["seeds"] == EVALUATION else self.config.study.metric  # a selection needs no more
                fidelity = self.sample_scorer.fidelity(features, only=only)
                search.tell(row, fidelity[self.config.study.metric])
                rows.append({**row, **fidelity})
                self._observer.on_score(rows[-1])
                selected |= {"features": features, "fidelity": fidelity}
        return SelectedSamples(**selected, rows=rows, search=search.result() if search else None)

    def repeat(self, point: Mapping[str, float]) -> list[float]:
        """`study.metric` at a point under the further evaluation seeds (phase `noise`); empty off rank 0."""
        draw, values = self._sampler(self.config.evaluation.samples), []
        first = SAMPLING[EVALUATION]
        for purpose in sorted(name for name in self._seeds if name.startswith(first) and name != first):
            samples = draw(point, self._seeds[purpose])
            if self.is_rank_0:
                features = self.sample_scorer.features(samples)
                scores = self.sample_scorer.fidelity(features, only=self.config.study.metric)
                values.append(scores[self.config.study.metric])
        return values

    def diversity(self, selected: SelectedSamples, *, ssim: bool = False) -> dict[str, float]:
        """Diversity of the selected samples, on rank 0; see `SampleScorer.diversity`."""
        return self.sample_scorer.diversity(selected.samples, selected.features, self.vqvae, ssim=ssim)

    def likelihood(self) -> dict[str, float]:
        """NLL, calibration and class accuracy of the validation split, every label kept; on rank 0."""
        return evaluate(self._held_out(), ["likelihood"])

    def scorecard(self, loss: LossConfig | None = None) -> dict[str, float]:
        """The scorecard of the validation split, on rank 0.

        Args:
            loss: its reference and partition are used; by default those of the configuration.
        """
        return evaluate(self._held_out(loss or self.config.loss), ["scorecard"])

    def gradient_shares(self) -> dict[str, float]:
        """`grad_share/…`: share and direction of each term's gradient on held-out tokens; on rank 0."""
        shares = gradient_shares_at(self.config, self.assets, self.var, self.vqvae, self._ranks.device)
        return {f"grad_share/{name}": shares[name] for name in sorted(_SHARES)}

    def held_out_scores(self) -> dict[str, float]:
        """Likelihood, scorecard and gradient shares of the validation split; on rank 0."""
        return self.likelihood() | self.scorecard() | self.gradient_shares()

    def _sampler(self, count: int) -> ImageSampler:
        labels_N = sample_labels(self.config, self.assets, count)
        return ImageSampler(self.config, self.var, self.vqvae, labels_N, ranks=self._ranks)

    def _held_out(self, loss: LossConfig | None = None) -> MetricInputs:
        tokens, evaluation = TokenCache.open(self.assets.tokens["validation"]), self.config.evaluation
        references: dict[str, Any] = {}
        if loss is not None:
            config = self.config.model_copy(update={"loss": loss})
            constants = loss_constants(config, self.assets, self.vqvae)
            references = {
                "loss": loss,
                "classes_V": constants.classes_V,
                "reference_variance_K": constants.variance_K.tolist(),
            }
        return MetricInputs(
            var=self.var,
            vqvae=self.vqvae,
            held_out_tokens_ML=tokens.tokens_NL,
            held_out_labels_M=tokens.labels_N,
            chunk=evaluation.chunk,
            device=self._ranks.device,
            **references,
        )


def gradient_shares_at(config: Config, assets: Assets, var, vqvae, device) -> dict[str, float]:
    """`gradient_shares` of the configuration at the predictions of ``var``, on held-out images of all classes."""
    held_out = TokenCache.open(assets.tokens["validation"])
    rows_B = spread_rows(held_out.labels_N, SHARE_IMAGES).numpy()
    tokens_BL = torch.as_tensor(held_out.tokens_NL[rows_B].astype("int64"), device=device)
    labels_B = torch.as_tensor(held_out.labels_N[rows_B].astype("int64"), device=device)
    with torch.no_grad():
        logits_BLV = var(labels_B, vqvae.teacher_input(split(tokens_BL, vqvae.scales)))
    constants = loss_constants(config, assets, vqvae).arguments(vqvae, device)
    return gradient_shares(logits_BLV, tokens_BL, config.loss, **constants)


class ScoreLog(ScoringObserver):
    """Records each score in the metrics log of a trial."""

    def __init__(self, log: MetricsLog, images: int):
        self._log, self._images = log, images

    def on_score(self, row: Mapping[str, Any]) -> None:
        """Append a `score` event."""
        self._log.event("score", images=self._images, **row)


def score_trial(scorer: CheckpointScorer, log: MetricsLog | None, directory: Path, images: int) -> dict[str, Any]:
    """Score the trained network of a trial, record the scores and save a grid of samples.

    Args:
        scorer: of the network.
        log: rank 0's metrics log; None on the others.
        directory: of the trial.
        images: training images seen, under which the scores are recorded.

    Returns:
        On rank 0 the fields of `TrialOutcome` that hold scores, on the others {}.
    """
    selected = scorer.select()
    repeated_values = scorer.repeat(selected.point)
    if not scorer.is_rank_0:
        return {}
    scores = selected.fidelity | scorer.diversity(selected) | scorer.held_out_scores()
    log.metrics(images, scores)
    samples = selected.samples
    save_grid(_first_of_each_class(samples, 10), directory / "samples" / f"{images:012d}.png", columns=10)
    return {
        "value": scores[scorer.config.study.metric],
        "scores": scores,
        "inference_points": selected.rows,
        "inference_parameters": {f"inference.{name}": value for name, value in selected.point.items()},
        "inference_at_bound": [f"inference.{name}" for name in selected.search.at_bound],
        "repeated_values": repeated_values,
        "protocol": scorer.sample_scorer.protocol(len(samples)).as_dict(),
    }


def _first_of_each_class(samples: Samples, count: int) -> torch.Tensor:
    """The first ``count`` images of every class, class by class, of as many classes as `GRID_IMAGES` allows."""
    labels_N = samples.labels_N
    shown = labels_N.unique()[: GRID_IMAGES // count]
    return torch.cat([samples.images_N3HW[labels_N == label][:count] for label in shown])


def current_protocol(config: Config, assets: Assets) -> dict[str, Any]:
    """The protocol of scores made now, on this machine, under this configuration."""
    return SampleScorer(config, assets, seed=0).protocol(config.evaluation.samples).as_dict()
