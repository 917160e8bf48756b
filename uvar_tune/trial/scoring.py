"""Scoring one checkpoint in the trial's own worker group, sharded by image index.

CFG needs no retraining: in `profile` mode the checkpoint is scored at several CFG scales on sampling seeds A, the best is
taken and told on seeds B, so that the choice does not flatter the value. `joint` scores once, at the trial's own scale.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from uvar_tune.config.schema import Config
from uvar_tune.data import TokenCache
from uvar_tune.evaluation import code_statistics, likelihood, save_grid, scorecard
from uvar_tune.evaluation.cfg_search import InferencePointSearch
from uvar_tune.metrics import metric
from uvar_tune.model.scales import split
from uvar_tune.objective import gradient_shares
from uvar_tune.seeds import SAMPLING
from uvar_tune.specs import Assets, TrialSpec
from uvar_tune.trial.loss_constants import loss_constants
from uvar_tune.trial.sample_scorer import Sampler, SampleScorer, from_rank_0

SHARE_IMAGES = 128  # held-out images on which gradient shares are measured


class Scorer:
    """Scores one network at inference points; every rank takes part, rank 0 judges.

    Args:
        spec: its assets, seeds, directory, cache and inference axes are used.
        recorder: rank 0's record of the trial, None on the others.
    """

    def __init__(self, config: Config, spec: TrialSpec, var, vqvae, *, rank: int, world_size: int, device, recorder):
        self.config, self.spec, self.var, self.vqvae = config, spec, var, vqvae
        self.rank, self.world_size, self.device, self.recorder = rank, world_size, device, recorder
        self._judge: SampleScorer | None = None

    @property
    def judge(self) -> SampleScorer | None:
        """LoadedCheckpoint when first needed: it reads the reference and the feature network."""
        if self._judge is None and self.rank == 0:
            self._judge = SampleScorer(
                self.config,
                self.spec.assets,
                cache=Path(self.spec.cache),
                seed=self.spec.seeds["sampling-b"],
                device=self.device,
            )
        return self._judge

    def rung(self, images: int) -> float | None:
        """The stop metric of `study.rung_samples` samples at this checkpoint's best coarse CFG scale; None off rank 0."""
        study, mode = self.config.study, self.var.training
        self.var.eval()
        draw = self._sampler(study.rung_samples)
        scores = []
        for cfg_scale in self._coarse():
            samples = draw({"cfg_scale": cfg_scale}, "sampling-a")
            if self.judge:
                scores.append(self.judge(samples)[study.pruning_metric])
        self.var.train(mode)
        if not scores:
            return None
        value = min(scores) if metric(study.pruning_metric).direction == "minimize" else max(scores)
        self.recorder.metrics(images, {f"rung/{study.pruning_metric}": value})
        return value

    def score(self, images: int) -> dict[str, Any]:
        """The trained network; on rank 0 fields of `TrialOutcome`, on the others {}.

        Args:
            images: training images seen, the step under which the scores are recorded.
        """
        self.var.eval()
        draw, profile, features = self._sampler(self.config.evaluation.samples), [], None
        search = InferencePointSearch.from_config(self.config, self.spec.inference_axes) if self.rank == 0 else None
        while (point := from_rank_0(search.ask() if search else None, self.world_size)) is not None:
            place = {name: value for name, value in point.items() if name != "seeds"}
            samples = draw(place, SAMPLING[point["seeds"]])
            if search:
                features = self.judge.extractor(samples)
                found = self.judge.scores(features)
                search.tell(point, found[self.config.study.metric])
                profile.append({**point, **found})
                self.recorder.event("score", images=images, **profile[-1])
        tokens_NL = draw.tokens_NL
        again = self._again(draw, place)
        if not search:
            return {}
        scores = found | self.judge.details(features, draw.labels_N)
        scores |= self._held_out()
        scores |= code_statistics(tokens_NL, scales=self.vqvae.scales, vocab_size=self.vqvae.vocab_size)
        self.recorder.metrics(images, scores)
        picture = Path(self.spec.directory) / "samples" / f"{images:012d}.png"
        save_grid(_by_class(samples, draw.labels_N, 10), picture, columns=10)
        return {
            "value": scores[self.config.study.metric],
            "scores": scores,
            "inference_points": profile,
            "inference_parameters": {f"inference.{name}": value for name, value in place.items()},
            "repeated_values": again,
            "protocol": self.judge.protocol(len(samples)),
        }

    def _again(self, draw: Sampler, place: dict[str, float]) -> list[float]:
        """The objective at the chosen point on further sampling seeds, as many as the spec names (phase `noise`)."""
        values = []
        for purpose in sorted(
            name for name in self.spec.seeds if name.startswith("sampling-b") and name != "sampling-b"
        ):
            samples = draw(place, purpose)
            if self.judge:
                values.append(self.judge(samples)[self.config.study.metric])
        return values

    def _sampler(self, samples: int) -> Sampler:
        return Sampler(
            self.config,
            self.var,
            self.vqvae,
            samples=samples,
            seeds=self.spec.seeds,
            rank=self.rank,
            world_size=self.world_size,
            device=self.device,
        )

    def _coarse(self) -> tuple[float, ...]:
        inference = self.config.inference
        return inference.search_cfg_scales if inference.search == "per_checkpoint" else (inference.cfg_scale,)

    def _held_out(self) -> dict[str, float]:
        """Of the validation split, every label kept: NLL, calibration and class accuracy; predictive entropy and the objective's
        terms, unweighted, by scale; the share that each term has of the gradient."""
        assets = self.spec.assets
        held_out = TokenCache.open(assets.tokens["validation"])
        about = {"chunk": self.config.evaluation.chunk, "device": self.device}
        found = likelihood(self.var, self.vqvae, held_out.tokens_NL, held_out.labels_N, **about)
        variance_K, classes_V = loss_constants(self.config, assets, self.vqvae)
        found |= scorecard(
            self.var,
            self.vqvae,
            held_out.tokens_NL,
            held_out.labels_N,
            classes_V=classes_V,
            reference_variance_K=variance_K.tolist(),
            loss=self.config.loss,
            **about,
        )
        shares = shares_at(self.config, assets, self.var, self.vqvae, self.device)
        names = {"second_order", "semantic_entropy", "second_order_cosine", "semantic_entropy_cosine"}
        return found | {f"grad_share/{name}": shares[name] for name in sorted(names)}


def shares_at(config: Config, assets: Assets, var, vqvae, device) -> dict[str, float]:
    """`gradient_shares` of the configuration's terms on held-out tokens, at the predictions of ``var``."""
    held_out = TokenCache.open(assets.tokens["validation"])
    tokens_BL = torch.as_tensor(held_out.tokens_NL[:SHARE_IMAGES].astype("int64"), device=device)
    labels_B = torch.as_tensor(held_out.labels_N[:SHARE_IMAGES].astype("int64"), device=device)
    with torch.no_grad():
        logits_BLV = var(labels_B, vqvae.teacher_input(split(tokens_BL, vqvae.scales)))
    constants = loss_constants(config, assets, vqvae)
    return gradient_shares(logits_BLV, tokens_BL, config.loss, **constants.arguments(vqvae, device))


def _by_class(samples_N3HW: torch.Tensor, labels_N: torch.Tensor, each: int) -> torch.Tensor:
    """The first ``each`` samples of every class, class by class."""
    return torch.cat([samples_N3HW[labels_N == label][:each] for label in labels_N.unique()])
