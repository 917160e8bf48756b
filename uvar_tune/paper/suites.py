"""The paper's tables from checkpoints: which numbers stand in which, and what must be equal for them to stand side by side.

`evaluate_checkpoints` is the whole of it; a new suite is one function from a `Comparison` to a `Table` and one line in `SUITES`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from uvar_tune.data.corruptions import BENCHMARK
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
from uvar_tune.paper.checkpoint_evaluation import CheckpointEvaluation
from uvar_tune.paper.published import BASELINE, OURS, PUBLISHED
from uvar_tune.paper.step_cost import STEPS, hardware, step_cost
from uvar_tune.paper.tables import Column, Number, Table
from uvar_tune.trial.factory import load_split

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Comparison:
    """The checkpoints side by side, ours last, and the folders that robustness is read from."""

    subjects: tuple[CheckpointEvaluation, ...]
    imagenet_c: str | None = None
    ood: str | None = None

    @property
    def ours(self) -> CheckpointEvaluation:
        return self.subjects[-1]

    @cached_property
    def corrupted(self) -> tuple[str, list[Corrupted]]:
        """(name, sets): `digits-c8` made of the validation images, or ImageNet-C's folders."""
        data = self.ours.config.data
        if self.imagenet_c is None:
            images = self.ours.splits["validation"]
            return BENCHMARK, corrupted_sets(images.images, images.labels_N)
        names = self.ours.splits["validation"].class_names
        return Path(self.imagenet_c).name, imagenet_c(
            self.imagenet_c, image_size=data.image_size, classes=names, on_corrupt=data.on_corrupt
        )

    @cached_property
    def foreign(self) -> dict[str, Any]:
        """Name → images out of distribution: noise, inverted, the classes that `data.classes` leaves out, a folder."""
        config = self.ours.config
        data = config.data
        found: dict[str, Any] = dict(out_of_distribution_sets(self.ours.splits["validation"].images))
        if data.classes is not None:
            every = load_split(config.with_values({"data.classes": None}), "validation").class_names
            left_out = [name for name in every if name not in data.classes]
            if left_out:
                found["left_out"] = load_split(config.with_values({"data.classes": left_out}), "validation").images
        if self.ood is not None:
            found[Path(self.ood).name] = class_folders(
                self.ood, image_size=data.image_size, on_corrupt=data.on_corrupt
            ).images
        return found


def table2(pair: Comparison) -> Table:
    rows = {
        one.method: one.sampled({name: one.fidelity[name] for name in ("fid", "is", "is_std", "kid")})
        for one in pair.subjects
    }
    return Table(
        "table2",
        "Table 2: fidelity",
        (Column("fid", "FID"), Column("is", "IS"), Column("kid", "KID", digits=4)),
        rows,
        PUBLISHED["table2"],
        _cfg_notes(pair),
    )


def table3(pair: Comparison) -> Table:
    suite, sets = pair.corrupted
    errors, rows = {}, {}
    for one in pair.subjects:
        progress = one.plan.progress(f"{one.method}: {suite}, sets")
        setting = {"chunk": one.config.evaluation.chunk, "device": one.plan.device}
        errors[one.method] = corruption_errors(one.var, one.vqvae, sets, progress=progress, **setting)
        inside = one.splits["validation"].images
        found = {name: one.likelihood[name] for name in ("nll_token", "nll_image", "accuracy")}
        rows[one.method] = (
            one.told(found)
            | one.told(
                ood_detection(one.var, one.vqvae, inside, pair.foreign, **setting), f"OOD: {', '.join(pair.foreign)}"
            )
            | one.told({"corruption_error": mean_error(errors[one.method])}, f"corruptions: {suite}")
        )
    notes = (
        "NLL in nats. AUROC of -log mean_y p(R|y), foreign images against the validation split; "
        f"without a name: the mean over {', '.join(pair.foreign)}. Corruptions: {suite}, {len(errors[OURS])} kinds.",
        *_mce(pair, suite, errors, rows),
    )
    columns = (
        Column("nll_token", "NLL / token", digits=3),
        Column("nll_image", "NLL / image"),
        Column("accuracy", "Accuracy (%)", 100),
        *(Column(f"auroc_ood/{name}", f"AUROC (%) {name}", 100, 1) for name in pair.foreign),
        Column("auroc_ood", "AUROC (%)", 100, 1),
        Column("mce", "mCE (%)", digits=1),
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


def table5(pair: Comparison) -> Table:
    ours = pair.ours
    found = step_cost(
        ours.config, ours.assets, ours.vqvae, ours.plan.device, ours.plan.progress("training steps in turns")
    )
    protocol = Protocol(
        metric_version=metric_version(),
        samples=STEPS,
        reference=ours.assets.data_sha256["train"],
        feature_network="none",
        weights="none",
        resizer="none",
        precision=ours.config.training.precision,
        cfg_convention="none",
        conditions=hardware(ours.plan.device),
    )
    rows = {
        method: {name: Number(value, protocol, ours.origin("0", None)) for name, value in values.items()}
        for method, values in found.items()
    }
    o = ours.config.loss
    ratio = found[OURS]["epoch_sec"] / found[BASELINE]["epoch_sec"]
    notes = (
        f"Both rows: this checkpoint's configuration; baseline with λ1 = λ2 = 0, ours as configured "
        f"(λ1 = {o.lambda_1:g}, λ2 = {o.lambda_2:g}, unit {o.lambda_unit}).",
        f"On {hardware(ours.plan.device)}; other load on the machine shows. A step takes {ratio:.3f} times as long as "
        "with λ = 0 (medians of steps taken in turns).",
    )
    columns = (
        Column("parameters", "Parameters (M)", 1e-6),
        Column("batch_size", "Batch-size", digits=0),
        Column("memory_gib", "Memory / device (GiB)", digits=3),
        Column("epoch_sec", "Time / epoch (s)"),
    )
    return Table("table5", "Table 5: cost", columns, rows, PUBLISHED["table5"], notes)


def table7(pair: Comparison) -> Table:
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
    found = {one.method: one.fidelity | one.diversity for one in pair.subjects}
    titles = {name: title for name, title in titles.items() if name in found[OURS]}
    titles |= {name: _scale_title(name) for name in found[OURS] if "/scale_" in name}
    rows = {one.method: one.sampled({name: found[one.method][name] for name in titles}) for one in pair.subjects}
    notes = (
        *_cfg_notes(pair),
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


def calibration(pair: Comparison) -> Table:
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
    o = pair.ours.config.loss
    judged = (
        f"reference {o.reference}, dispersion {o.dispersion}, discrepancy {o.discrepancy}, normalize {o.normalize}, "
        f"classes {o.partition}"
    )
    for one in pair.subjects:
        card = one.scorecard(pair.ours.config)
        rows[one.method] = one.sampled({"fid": one.fidelity["fid"]}) | one.told(one.likelihood) | one.told(card, judged)
    columns += [Column(name, _scale_title(name), digits=4) for name in card]
    columns += [Column(name, _scale_title(name), digits=4) for name in one.likelihood if "/scale_" in name]
    notes = (
        *_cfg_notes(pair),
        "The best temperature is fitted on the same images: a bound on what temperature alone can gain.",
        f"Scorecard: {judged}; dispersion ratio 1 is the preferred spread.",
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


SUITES: dict[str, Callable[[Comparison], Table]] = {
    "table2": table2,
    "table3": table3,
    "table5": table5,
    "table7": table7,
    "calibration": calibration,
}
_OF_TOKENS = {"table3", "calibration"}


def evaluate_checkpoints(pair: Comparison, suites: list[str]) -> list[Table]:
    """The tables of ``suites`` in order.

    Raises:
        ProtocolMismatch: the two checkpoints' numbers cannot be compared, found before anything is computed.
        ConfigError: unfit images or weights; a network whose outputs are not finite.
    """
    check_comparable(pair, suites)
    if "table3" in suites:
        _ = pair.corrupted, pair.foreign  # folders that cannot be read are found before anything is computed
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FidelityWarning)
        try:
            tables = [SUITES[name](pair) for name in suites]
        except Diverged as error:
            raise ConfigError(f"cannot be evaluated: {error}", where=str(pair.ours.directory)) from None
    for text in dict.fromkeys(str(one.message) for one in caught):
        logger.warning(f"warning: {text}")
    return tables


def check_comparable(pair: Comparison, suites: list[str]) -> None:
    """What of two checkpoints must be equal: the images, and for likelihoods the tokenizer."""
    ours = pair.ours
    for one in pair.subjects:
        names = one.splits["validation"].class_names
        if len(names) != one.var.num_classes:
            raise ConfigError(
                f"the checkpoint was trained on {one.var.num_classes} classes, its data (data.*) have {len(names)}",
                where=str(one.directory),
            )
    for other in pair.subjects[:-1]:
        for split in ("train", "validation"):
            if other.splits[split].sha256 != ours.splits[split].sha256:
                raise ProtocolMismatch(
                    f"the {split} images of the baseline are not those of the checkpoint "
                    "(data.*): the numbers cannot be compared",
                    where="protocol.reference",
                )
        if other.tokenizer_hash == ours.tokenizer_hash:
            continue
        differ = (
            f"the baseline's tokenizer (scales {list(other.vqvae.scales)}, {other.vqvae.vocab_size} codes, hash "
            f"{other.tokenizer_hash[:8]}) is not the checkpoint's (scales {list(ours.vqvae.scales)}, "
            f"{ours.vqvae.vocab_size} codes, hash {ours.tokenizer_hash[:8]})"
        )
        if _OF_TOKENS & set(suites):
            raise ProtocolMismatch(
                f"{differ}: likelihoods of tokens cannot be compared; the suites table2, table5 and table7 can",
                where="protocol.weights",
            )
        logger.warning(f"warning: {differ}: a difference in FID is one of both together")


def _mce(
    pair: Comparison, suite: str, errors: dict[str, dict[str, list[float]]], rows: dict[str, dict[str, Number]]
) -> list[str]:
    """Adds `mce` to the rows where there is a divisor, and says what it is."""
    if BASELINE not in errors:
        return ["mCE needs a divisor: give --baseline. The plain mean error in percent stands in its place."]
    flawless = [kind for kind, shares in errors[BASELINE].items() if not sum(shares)]
    if flawless:
        return [f"mCE has no divisor: the baseline makes no error under {', '.join(flawless)}."]
    divisor = f"errors of {pair.subjects[0].about}"
    for one in pair.subjects:
        value = mean_corruption_error(errors[one.method], errors[BASELINE])
        rows[one.method] |= one.told({"mce": value}, f"corruptions: {suite}", divisor)
    return [
        f"mCE is divided by the baseline's errors ({divisor}), so the baseline's is 100; the paper does not name its divisor."
    ]


def _cfg_notes(pair: Comparison) -> tuple[str, ...]:
    notes = []
    for one in pair.subjects:
        profile = ", ".join(f"{scale:g}: {fid:.2f}" for scale, fid in one.profile.items())
        how = f"of least FID on seeds A ({profile}), told on seeds B" if profile else "as given"
        notes.append(f"{one.method}: CFG {one.cfg_scale:g}, {how}; {one.plan.samples:,} samples; {one.about}")
    evaluation = pair.ours.config.evaluation
    return (*notes, f"Features: {evaluation.extractor}; reference: the {evaluation.reference_split} split.")


def _scale_title(name: str) -> str:
    return f"{metric(name).title}{', scale ' + name.split('/scale_')[1] if '/scale_' in name else ''}"
