"""The paper's tables from checkpoints: which numbers each holds, and what must be equal to compare them.

`evaluate_checkpoints` makes them. A new table is one function from a `Comparison` to a `Table` and one line in
`TABLES`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from uvar_tune.data.corruptions import BENCHMARK, OUT_OF_DISTRIBUTION
from uvar_tune.errors import ConfigError, Diverged
from uvar_tune.evaluation import (
    Corrupted,
    FidelityWarning,
    Protocol,
    ProtocolMismatch,
    class_folders,
    corrupted_sets,
    corruption_errors,
    imagenet_c,
    mean_corruption_error,
    mean_error,
    ood_detection,
    out_of_distribution_sets,
)
from uvar_tune.evaluation.protocol import metric_version
from uvar_tune.metrics import metric
from uvar_tune.paper.checkpoint_evaluation import CheckpointEvaluation, parameter_label
from uvar_tune.paper.published import BASELINE, OURS, PUBLISHED
from uvar_tune.paper.step_cost import STEPS, WARMUP_STEPS, hardware, step_cost
from uvar_tune.paper.tables import Column, Number, Table
from uvar_tune.trial.factory import load_split

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Comparison:
    """The checkpoints to compare, and the folders of images for robustness.

    Attributes:
        checkpoints: the baseline, if there is one, and ours, which is last.
        imagenet_c: ImageNet-C, laid out KIND/SEVERITY/CLASS/IMAGE; None for `digits-c8`.
        ood: out-of-distribution images, laid out CLASS/IMAGE.
    """

    checkpoints: tuple[CheckpointEvaluation, ...]
    imagenet_c: str | None = None
    ood: str | None = None

    @property
    def ours(self) -> CheckpointEvaluation:
        """The checkpoint that is evaluated."""
        return self.checkpoints[-1]

    @cached_property
    def corrupted(self) -> tuple[str, list[Corrupted]]:
        """(name, sets): `digits-c8`, made of the validation images, or ImageNet-C's folders."""
        data, images = self.ours.config.data, self.ours.splits["validation"]
        if self.imagenet_c is None:
            return BENCHMARK, corrupted_sets(images.images, images.labels_N)
        sets = imagenet_c(
            self.imagenet_c, image_size=data.image_size, classes=images.class_names, on_corrupt=data.on_corrupt
        )
        return Path(self.imagenet_c).name, sets

    @cached_property
    def out_of_distribution(self) -> dict[str, Any]:
        """Name → images: noise, inverted, the classes that `data.classes` leaves out, the folder ``ood``."""
        config = self.ours.config
        data = config.data
        sets: dict[str, Any] = dict(out_of_distribution_sets(self.ours.splits["validation"].images))
        if data.classes is not None:
            names = load_split(config.with_values({"data.classes": None}), "validation").class_names
            left_out = [name for name in names if name not in data.classes]
            if left_out:
                sets["left_out"] = load_split(config.with_values({"data.classes": left_out}), "validation").images
        if self.ood is not None:
            folder = class_folders(self.ood, image_size=data.image_size, on_corrupt=data.on_corrupt)
            sets[Path(self.ood).name] = folder.images
        return sets


def table2(comparison: Comparison) -> Table:
    """Fidelity: FID, IS and KID at each checkpoint's own inference point."""
    rows, searches = {}, {}
    for one in comparison.checkpoints:
        fidelity = one.selected.fidelity
        rows[one.method] = one.sample_numbers({name: fidelity[name] for name in ("fid", "is", "is_std", "kid")})
        searches[one.method] = one.selected.search.as_dict()
    return Table(
        "table2",
        "Table 2: fidelity",
        (Column("fid", "FID"), Column("is", "IS"), Column("kid", "KID", digits=4)),
        rows,
        PUBLISHED["table2"],
        _inference_notes(comparison),
        facts={"inference_search": searches},
    )


def table3(comparison: Comparison) -> Table:
    """Likelihood, out-of-distribution detection and robustness of the class read-out."""
    name, sets = comparison.corrupted
    outside = comparison.out_of_distribution
    errors, rows = {}, {}
    for one in comparison.checkpoints:
        settings = {"chunk": one.config.evaluation.chunk, "device": one.settings.device}
        progress = one.settings.progress(f"{one.method}: {name}, sets", len(sets))
        errors[one.method] = corruption_errors(one.var, one.vqvae, sets, progress=progress, **settings)
        detection = ood_detection(one.var, one.vqvae, one.splits["validation"].images, outside, **settings)
        rows[one.method] = (
            one.held_out_numbers({key: one.likelihood[key] for key in ("nll_token", "nll_image", "accuracy")})
            | one.held_out_numbers(detection, f"OOD: {', '.join(outside)}")
            | one.held_out_numbers({"corruption_error": mean_error(errors[one.method])}, f"corruptions: {name}")
        )
    notes = (
        "NLL in nats. AUROC of -log mean_y p(R|y), out-of-distribution images against the validation split; "
        f"{_ood_mean_note(outside)} Corruptions: {name}, {len(errors[OURS])} kinds.",
        *_add_mce(comparison, name, errors, rows),
    )
    columns = (
        Column("nll_token", "NLL / token", digits=3),
        Column("nll_image", "NLL / image"),
        Column("accuracy", "Accuracy (%)", 100),
        *(Column(f"auroc_ood/{key}", f"AUROC (%) {key}", 100, 1) for key in outside),
        *([Column("auroc_ood", "AUROC (%), mean", 100, 1)] if _hard_sets(outside) else []),
        Column("mce", "mCE", digits=1),
        Column("corruption_error", "error under corruption (%)", digits=1),
    )
    return Table(
        "table3",
        "Table 3: likelihood and robustness",
        columns,
        rows,
        PUBLISHED["table3"],
        notes,
        facts={"corruption_errors": errors},
    )


def table5(comparison: Comparison) -> Table:
    """Cost of a training step with λ = 0 and as configured."""
    ours = comparison.ours
    device, loss = ours.settings.device, ours.config.loss
    progress = ours.settings.progress("training steps in turns", WARMUP_STEPS + STEPS)
    costs = step_cost(ours.config, ours.assets, ours.vqvae, device, progress)
    protocol = Protocol(
        metric_version=metric_version(),
        samples=STEPS,
        reference=ours.assets.data_sha256["train"],
        feature_network="none",
        weights="none",
        resizer="none",
        precision=ours.config.training.precision,
        cfg_convention="none",
        conditions=hardware(device),
    )
    rows = {
        method: {name: Number(value, protocol, ours.origin("0")) for name, value in values.items()}
        for method, values in costs.items()
    }
    ratio = costs[OURS]["epoch_sec"] / costs[BASELINE]["epoch_sec"]
    notes = (
        f"Both rows: this checkpoint's configuration; baseline with λ1 = λ2 = 0, ours as configured "
        f"(λ1 = {loss.lambda_1:g}, λ2 = {loss.lambda_2:g}, unit {loss.lambda_unit}).",
        f"On {hardware(device)}; other load on the machine affects it. A step takes {ratio:.3f} times as long as "
        "with λ = 0 (medians of steps taken in turns).",
    )
    columns = (
        Column("parameters", "Parameters (M)", 1e-6),
        Column("batch_size", "Batch-size", digits=0),
        Column("memory_gib", "Memory / device (GiB)", digits=3),
        Column("epoch_sec", "Time / epoch (s)"),
    )
    return Table("table5", "Table 5: cost", columns, rows, PUBLISHED["table5"], notes)


def table7(comparison: Comparison) -> Table:
    """Diversity of the samples."""
    titles = {
        "ssim_pairwise": "Mean pairwise SSIM",
        "diversity_ssim": "SSIM diversity score",
        "precision": "Precision",
        "recall": "Recall",
        "f1": "F1",
        "density": "Density",
        "coverage": "Coverage",
        "conditional_accuracy": "Samples classified as their label",
        "code_usage": "Codes in use, share",
        "code_entropy": "Entropy of the codes (nats)",
    }
    scores = {one.method: one.selected.fidelity | one.diversity for one in comparison.checkpoints}
    titles = {name: title for name, title in titles.items() if name in scores[OURS]}
    titles |= {name: _title(name) for name in scores[OURS] if "/scale_" in name}
    rows = {
        one.method: one.sample_numbers({name: scores[one.method][name] for name in titles})
        for one in comparison.checkpoints
    }
    notes = (
        *_inference_notes(comparison),
        "SSIM over pairs of samples of one class; precision and recall with 3 neighbours, density and coverage with 5.",
    )
    return Table(
        "table7",
        "Table 7: diversity",
        tuple(Column(name, title) for name, title in titles.items()),
        rows,
        PUBLISHED["table7"],
        notes,
        transposed=True,
    )


def calibration(comparison: Comparison) -> Table:
    """Calibration of tokens and classes, and the scorecard of uncertainty preservation."""
    kinds = {
        "nll_token": "NLL / token",
        "ece_token": "ECE, tokens",
        "temperature_token": "Best temperature, tokens",
        "nll_class": "NLL, class",
        "ece_class": "ECE, class",
        "temperature_class": "Best temperature, class",
    }
    columns, rows = [Column("fid", "FID")], {}
    for name, title in kinds.items():
        columns.append(Column(name, title, digits=4))
        if not name.startswith("temperature"):
            columns.append(Column(f"{name}_tempered", f"{title}, at its best temperature", digits=4))
    columns.append(Column("accuracy", "Accuracy", digits=4))
    loss = comparison.ours.config.loss
    conditions = (
        f"reference {loss.reference}, dispersion {loss.dispersion}, discrepancy {loss.discrepancy}, "
        f"normalize {loss.normalize}, classes {loss.partition}"
    )
    for one in comparison.checkpoints:
        scorecard = one.scorecard(loss)
        rows[one.method] = (
            one.sample_numbers({"fid": one.selected.fidelity["fid"]})
            | one.held_out_numbers(one.likelihood)
            | one.held_out_numbers(scorecard, conditions)
        )
    columns += [Column(name, _title(name), digits=4) for name in scorecard]
    columns += [Column(name, _title(name), digits=4) for name in one.likelihood if "/scale_" in name]
    notes = (
        *_inference_notes(comparison),
        "The best temperature is fitted on the same images: an upper bound on what temperature alone can gain.",
        f"Scorecard: {conditions}; dispersion ratio 1 is the preferred spread.",
    )
    return Table(
        "calibration",
        "Calibration, and the scorecard of uncertainty preservation",
        tuple(columns),
        rows,
        PUBLISHED["calibration"],
        notes,
        transposed=True,
    )


TABLES: dict[str, Callable[[Comparison], Table]] = {
    "table2": table2,
    "table3": table3,
    "table5": table5,
    "table7": table7,
    "calibration": calibration,
}
_TABLES_OF_TOKENS = {"table3", "calibration"}


def evaluate_checkpoints(comparison: Comparison, names: list[str]) -> list[Table]:
    """The tables ``names`` (of `TABLES`) in order.

    Raises:
        ProtocolMismatch: numbers of the two checkpoints cannot be compared; raised before anything is computed.
        ConfigError: unusable images or weights, or a network whose outputs are not finite.
    """
    check_comparable(comparison, names)
    if "table3" in names:
        _ = comparison.corrupted, comparison.out_of_distribution  # unreadable folders end the evaluation here
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FidelityWarning)
        try:
            tables = [TABLES[name](comparison) for name in names]
        except Diverged as error:
            raise ConfigError(f"cannot be evaluated: {error}", where=str(comparison.ours.directory)) from None
    for text in dict.fromkeys(str(one.message) for one in caught):
        logger.warning(f"warning: {text}")
    return tables


def check_comparable(comparison: Comparison, names: list[str]) -> None:
    """Check that the checkpoints share images, and for likelihoods the tokenizer.

    Raises:
        ProtocolMismatch: they do not.
        ConfigError: the data of a checkpoint have another number of classes than its network.
    """
    ours = comparison.ours
    for one in comparison.checkpoints:
        class_names = one.splits["validation"].class_names
        if len(class_names) != one.var.num_classes:
            raise ConfigError(
                f"the checkpoint was trained on {one.var.num_classes} classes, its data (data.*) have "
                f"{len(class_names)}",
                where=str(one.directory),
            )
    for other in comparison.checkpoints[:-1]:
        for split in ("train", "validation"):
            if other.splits[split].sha256 != ours.splits[split].sha256:
                raise ProtocolMismatch(
                    f"the {split} images of the baseline are not those of the checkpoint "
                    "(data.*): the numbers cannot be compared",
                    where="protocol.reference",
                )
        _check_tokenizers(ours, other, names)
        _warn_of_other_search(ours, other)


def _check_tokenizers(ours: CheckpointEvaluation, other: CheckpointEvaluation, names: list[str]) -> None:
    if other.tokenizer_hash == ours.tokenizer_hash:
        return
    difference = (
        f"the baseline's tokenizer (scales {list(other.vqvae.scales)}, {other.vqvae.vocab_size} codes, hash "
        f"{other.tokenizer_hash[:8]}) is not the checkpoint's (scales {list(ours.vqvae.scales)}, "
        f"{ours.vqvae.vocab_size} codes, hash {ours.tokenizer_hash[:8]})"
    )
    if _TABLES_OF_TOKENS & set(names):
        raise ProtocolMismatch(
            f"{difference}: likelihoods of tokens cannot be compared; table2, table5 and table7 can",
            where="protocol.weights",
        )
    logger.warning(f"warning: {difference}: a difference in FID is one of both together")


def _warn_of_other_search(ours: CheckpointEvaluation, other: CheckpointEvaluation) -> None:
    differing = [
        f"{name} {getattr(section(other), key)} and {getattr(section(ours), key)}"
        for name, section, key in (
            ("study.metric", lambda one: one.config.study, "metric"),
            *(
                (f"inference.{key}", lambda one: one.config.inference, key)
                for key in ("search", "search_axes", "search_cfg_scales", "search_refinements")
            ),
        )
        if getattr(section(other), key) != getattr(section(ours), key)
    ]
    if differing:
        logger.warning(
            f"warning: the inference points of baseline and checkpoint are searched differently: {'; '.join(differing)}"
        )


def _hard_sets(outside: Mapping[str, Any]) -> list[str]:
    return [name for name in outside if name not in OUT_OF_DISTRIBUTION]


def _ood_mean_note(outside: Mapping[str, Any]) -> str:
    trivial = " and ".join(OUT_OF_DISTRIBUTION)
    if names := _hard_sets(outside):
        return f"their mean is over {', '.join(names)}, without {trivial}, which are trivial to detect."
    return f"{trivial} are trivial to detect: give --ood."


def _add_mce(
    comparison: Comparison, name: str, errors: dict[str, dict[str, list[float]]], rows: dict[str, dict[str, Number]]
) -> list[str]:
    """Add `mce` to the rows if there is a divisor; the notes on it."""
    if BASELINE not in errors:
        return ["mCE needs a divisor: give --baseline. The plain mean error in percent is shown instead."]
    flawless = [kind for kind, shares in errors[BASELINE].items() if not sum(shares)]
    if flawless:
        return [f"mCE has no divisor: the baseline makes no error under {', '.join(flawless)}."]
    divisor = f"errors of {comparison.checkpoints[0].description}"
    for one in comparison.checkpoints:
        value = mean_corruption_error(errors[one.method], errors[BASELINE])
        rows[one.method] |= one.held_out_numbers({"mce": value}, f"corruptions: {name}", divisor)
    return [
        f"mCE is divided by the baseline's errors ({divisor}), so the baseline's is 100; the paper does not name its "
        "divisor."
    ]


def _inference_notes(comparison: Comparison) -> tuple[str, ...]:
    """At which inference point each checkpoint was sampled, and how the point was selected."""
    notes = []
    for one in comparison.checkpoints:
        search, name = one.selected.search, one.config.study.metric
        point = ", ".join(f"{parameter_label(key)} {value:g}" for key, value in one.selected.point.items())
        how = "as given"
        if search.selection_value is not None:
            curve = ", ".join(f"{scale:g}: {value:.4g}" for scale, value in search.curve())
            how = f"selected by {name} on selection seeds ({curve}), scored again on evaluation seeds"
            if search.at_bound:
                how += f"; at the end of the range of {', '.join(map(parameter_label, search.at_bound))}"
        notes.append(f"{one.method}: {point}, {how}; {one.settings.samples:,} samples; {one.description}")
    evaluation = comparison.ours.config.evaluation
    return (*notes, f"Features: {evaluation.extractor}; reference: the {evaluation.reference_split} split.")


def _title(name: str) -> str:
    return f"{metric(name).title}{', scale ' + name.split('/scale_')[1] if '/scale_' in name else ''}"
