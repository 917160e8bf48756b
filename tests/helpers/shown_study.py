"""A made-up study for people's pages: its storage and its files are written by the real search, and MLflow by the real tracker."""

from __future__ import annotations

import math
import random

import torch

from tests.helpers.search_cases import ended, scored
from tests.helpers.small_checkpoint import write_checkpoint
from uvar_tune.analysis.confirmation import confirm_arms
from uvar_tune.commands.summary import summarize
from uvar_tune.config.loading import validate
from uvar_tune.evaluation.image_grid import save_grid
from uvar_tune.search.dashboard import SampleGrids, artifact_directory, newest_grid
from uvar_tune.search.load import load_results
from uvar_tune.search.replicates import Replicates
from uvar_tune.search.study import Search
from uvar_tune.study_dir import StudyDirectory
from uvar_tune.tracking.metrics_log import MetricsLog
from uvar_tune.tracking.parameters import (
    datasets,
    provenance_tags,
    run_parameters,
    saved_view,
    score_parameters,
    source_tags,
    study_parameters,
    study_tags,
)
from uvar_tune.tracking.presentation import phase_of, run_name
from uvar_tune.trial.trial import write_config

QUESTION = 'Do λ1 & λ2 "lower" the <b>FID</b> of a *small* VAR on digits? 🎲'
CLASSES = ["<b>cat</b>", 'dog "D"', "🦉", "it's a fox"]
PROVENANCE = {"commit": "0123456789ab", "data_sha256": {"train": "12" * 32, "validation": "34" * 32}}
PROTOCOL = {"metric_version": "1", "samples": 1000, "reference": "4677e795", "feature_network": "digits", "divisor": ""}
IMAGES = {"train": 1438, "validation": 359}
SCALES, BASE, STEPS = (0.0, 0.5, 1.0, 2.0, 4.0), 5.4, 20
SPACE = {
    "loss.lambda_1": {"role": "scientific", "type": "float", "low": 0.01, "high": 6, "log": True, "baseline": 0},
    "loss.lambda_2": {"role": "scientific", "type": "float", "low": 0.004, "high": 0.9, "log": True, "baseline": 0},
    "loss.reference": {
        "role": "scientific",
        "type": "categorical",
        "choices": ["normal", "uniform", "dataset", "semantic"],
    },
    "inference.cfg_scale": {"role": "inference", "type": "float", "low": 0, "high": 4},
}


def shown_config(name: str, trials: int, **study):
    """A search over the loss weights, four references and CFG."""
    settings = {"name": name, "trials": trials, "sampler": "random", "question": QUESTION, **study}
    inference = {"search": "per_checkpoint", "search_cfg_scales": list(SCALES)}
    training = {"images": 640 * STEPS, "warmup_images": 0}
    return validate({"study": settings, "space": SPACE, "inference": inference, "training": training}, "test")


class ShownStudy:
    """Trials whose FID is a bowl around λ1 = 0.5, with the noise of a seed; every tenth one diverges."""

    def __init__(self, store, name: str = "shown", trials: int = 6, **study):
        self.config = shown_config(name, trials, **study)
        self.files = StudyDirectory(store.root, name)
        self.files.create()
        self.files.create_or_verify(self.config)
        self.tracker, self.random = store.tracker(name), random.Random(0)
        self.url = self.files.storage_url(self.config)
        self.tracker.start_study(
            study_parameters(self.config),
            {**provenance_tags(PROVENANCE), **study_tags(name, self.config.study.question)},
        )
        self.tracker.save_view(**saved_view(self.config, "minimize"))
        self.tracker.log_artifact(None, self.files.config, "")
        self.tracker.log_datasets(datasets(self.config, PROVENANCE["data_sha256"], IMAGES))

    def search(self) -> ShownStudy:
        """Run all trials."""
        grids = SampleGrids(
            artifact_directory(self.files.directory), lambda number: newest_grid(self.files.trial(number))
        )
        search = Search(self.config, self.url, grids=grids)
        while (proposal := search.ask()) is not None:
            self._run(search, proposal, proposal.number, self.files.trial(proposal.number))
        return self

    def confirm(self, pairs: int = 6) -> ShownStudy:
        """Measure the noise of the baseline, and compare the best trials with it."""
        results, study = self.results(), self.config.study
        noise = Replicates(self.config, self.url, "noise", {"baseline": {}}, 4, samplings=study.noise_samplings)
        arms = confirm_arms(self.config, results, {})
        for work in (noise, Replicates(self.config, self.url, "confirm", arms, pairs)):
            while (proposal := work.ask()) is not None:
                self._run(
                    work,
                    proposal,
                    work.key(proposal.number),
                    self.files.directory / work.folder / f"{proposal.number:05d}",
                )
        return self

    def results(self):
        return load_results(self.config, self.files)

    def finish(self, timeout_sec: float = 600.0):
        """Summarise the study as the driver does; the results, once MLflow has everything."""
        results = self.results()
        tokenizer = self.files.cache / "tokenizers" / "small"
        write_checkpoint(results.best.directory, tokenizer, CLASSES)
        outcome = summarize(self.config, self.files, self.tracker)
        self.tracker.finish_study("FINISHED")
        assert self.tracker.close(timeout_sec)
        return outcome.results

    def _run(self, work, proposal, key, directory) -> None:
        write_config(directory, self.config.with_values(proposal.values))
        tags = {"uvar.kind": proposal.kind, "uvar.phase": phase_of(key), "uvar.attempt": "1", **source_tags(PROVENANCE)}
        self.tracker.start_trial(
            key,
            directory,
            run_parameters(self.config, proposal.values),
            tags,
            name=run_name(key, proposal.kind, proposal.values),
            phase=phase_of(key),
        )
        log, seed = (
            MetricsLog(directory / "metrics.jsonl"),
            random.Random(f"{proposal.seeds['training']} {proposal.kind}"),
        )
        cfg_scale = seed.choice(SCALES[1:4])
        fid = self._fid(proposal.values, seed)
        diverges = isinstance(key, int) and key % 10 == 9
        for step in range(1, STEPS + 1 if not diverges else STEPS // 2):
            ce = 3.2 + 1.6 * math.exp(-step / 6) + 0.02 * fid + 0.01 * self.random.gauss(0, 1)
            values = {
                "loss/total": ce * 1.1,
                "loss/ce": ce,
                "loss/second_order": 0.3 / step,
                "loss/semantic_entropy": 1.7,
            }
            log.metrics(640 * step, {**values, "grad_norm": 0.4, "learning_rate": 2e-3, "images_per_sec": 900.0})
        if diverges:
            work.prune(proposal.number, ended("diverged", {"message": "the loss is nan"}), PROVENANCE)
            self.tracker.finish_trial(key, "FAILED")
            return
        scores = self._scores(fid)
        profile = {scale: fid + 0.4 * (scale - cfg_scale) ** 2 for scale in SCALES}
        points = [{"cfg_scale": scale, "seeds": "selection", "fid": value} for scale, value in profile.items()]
        points.append({"cfg_scale": cfg_scale, "seeds": "evaluation", "fid": fid})
        for one in points:
            log.event("score", images=640 * STEPS, **one)
        log.metrics(640 * STEPS, scores)
        _grid(directory / "samples" / "sample.png", int(key) if isinstance(key, int) else 0)
        point = {"inference.cfg_scale": cfg_scale}
        details = {"scores": scores, "inference_parameters": point, "protocol": PROTOCOL, "seconds": 61.0}
        details["inference_points"] = points
        if not isinstance(key, int) and key.startswith("noise"):
            samplings = self.config.study.noise_samplings
            details["repeated_values"] = [fid + seed.gauss(0, 0.05) for _ in range(samplings - 1)]
        work.complete(proposal.number, scored(fid, details), PROVENANCE)
        self.tracker.finish_trial(key, "FINISHED", scores, {**point, **score_parameters(PROTOCOL, proposal.seeds)})

    def _fid(self, values, seed: random.Random) -> float:
        first, second = values.get("loss.lambda_1", 0.0), values.get("loss.lambda_2", 0.0)
        gain = 0.0 if first == 0 else 0.9 - 0.6 * math.log10(first / 0.5) ** 2
        return BASE - gain + max(0.0, 2.5 * (second - 0.1)) + seed.gauss(0, 0.15)

    @staticmethod
    def _scores(fid: float) -> dict[str, float]:
        scales = {f"nll_token/scale_{k}": 4.0 - 0.4 * k for k in (1, 2, 3, 4)}
        plain = {"fid": fid, "kid": fid / 1000, "is": 7.5, "precision": 0.71, "recall": 0.62, "f1": 0.66}
        return {**plain, "conditional_accuracy": 0.97, "nll_token": 3.2, "accuracy": 0.9, "code_usage": 1.0, **scales}


def _grid(path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    save_grid(torch.rand(8, 3, 8, 8, generator=generator), path, columns=4, min_pixels=64)
