"""The registry of metrics: name, unit, direction and title of each.

A name may have a part (``loss/ce``), a scale (``loss/ce/scale_3``) or the suffix ``_tempered``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from uvar_tune.errors import ConfigError, nearest


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: as in logs, exports and `study.metric`.
        unit: of its values.
        direction: minimize or maximize; target if a certain value is best; None if it is monitored only.
        title: for people.
        use: OBJECTIVE if it may be `study.metric`: a score of the samples, computed at every inference point. FURTHER
            if it may be one of `study.further_metrics` or be bounded by `study.constraints`. None: recorded only.
        short: head of its column; None: the name.
        target: the best value; None if it is that of the data.
    """

    name: str
    unit: str
    direction: str | None
    title: str
    use: str | None = None
    short: str | None = None
    target: float | None = None


OBJECTIVE, FURTHER = "objective", "further"


def _table(*rows: tuple) -> dict[str, Metric]:
    return {row[0]: Metric(*row) for row in rows}


METRICS = _table(
    ("fid", "squared feature distance", "minimize", "Fréchet distance", OBJECTIVE, "FID"),
    ("kid", "squared MMD", "minimize", "Kernel distance", OBJECTIVE, "KID"),
    ("is", "classes", "maximize", "Inception score", OBJECTIVE, "IS"),
    ("is_std", "classes", None, "Standard deviation of the inception score over its splits"),
    ("precision", "share", "maximize", "Precision", OBJECTIVE),
    ("recall", "share", "maximize", "Recall", OBJECTIVE),
    ("f1", "share", "maximize", "Harmonic mean of precision and recall"),
    ("density", "ratio", "target", "Density", FURTHER, None, 1.0),
    ("coverage", "share", "maximize", "Coverage", FURTHER),
    ("ssim_pairwise", "1", "minimize", "Mean SSIM of pairs of samples"),
    ("diversity_ssim", "1", "maximize", "1 - mean SSIM of pairs of samples"),
    ("nll_token", "nats", "minimize", "Negative log-likelihood per token", FURTHER, "NLL"),
    ("nll_image", "nats", "minimize", "Negative log-likelihood per image", FURTHER),
    ("nll_class", "nats", "minimize", "Negative log-likelihood of the class read-out", FURTHER),
    ("accuracy", "share", "maximize", "Accuracy of argmax_y p(R|y)", FURTHER),
    ("conditional_accuracy", "share", "maximize", "Samples classified as their label", FURTHER, "recognised"),
    ("ece_token", "share", "minimize", "Expected calibration error, tokens", FURTHER, "ECE"),
    ("ece_class", "share", "minimize", "Expected calibration error, classes", FURTHER),
    ("temperature_token", "1", None, "Temperature of least token NLL"),
    ("temperature_class", "1", None, "Temperature of least class NLL"),
    ("auroc_ood", "share", "maximize", "AUROC of the OOD score"),
    ("mce", "percent", "minimize", "Mean corruption error, over the divisor's"),
    ("corruption_error", "percent", "minimize", "Error under corruption, plain mean"),
    ("copy_share", "share", "minimize", "Samples that copy a training image", FURTHER, "copies"),
    ("training_proximity", "probability", "target", "Samples nearer to training than new images", FURTHER, None, 0.5),
    ("code_usage", "share", "maximize", "Codes in use", FURTHER, "codes used"),
    ("code_entropy", "nats", "target", "Entropy of the codes in use", FURTHER),
    ("entropy", "nats", None, "Predictive entropy"),
    ("dispersion", "anchor", None, "Dispersion of the predictions"),
    ("dispersion_reference", "anchor", None, "Dispersion of the reference"),
    ("dispersion_ratio", "1", None, "Root ratio of dispersion to reference"),
    ("second_order", "discrepancy", None, "Discrepancy of dispersion and reference"),
    ("semantic_entropy", "nats", None, "Semantic entropy"),
    ("loss", "nats", "minimize", "Loss term"),
    ("grad_share", "share", None, "Share of the gradient at the logits"),
    ("learning_rate", "1", None, "Learning rate"),
    ("grad_norm", "1", None, "Gradient norm before clipping"),
    ("images_per_sec", "images/s", None, "Speed"),
    ("held_out", "1", None, "Whether images were held out from the tokenizer's training"),
    ("reconstruction_mse", "1", "minimize", "Reconstruction error, pixels in [-1, 1]"),
    ("parameters", "1", None, "Parameters of the VAR"),
    ("batch_size", "images", None, "Images per step"),
    ("memory_gib", "GiB", "minimize", "Memory of a training step, per device"),
    ("epoch_sec", "s", "minimize", "Time of an epoch, training only"),
    ("cpu_sec", "s", "minimize", "CPU seconds"),
)
HEADLINE = (  # what a reader looks at first; all others are grouped in MLflow
    *("fid", "kid", "is", "precision", "recall", "f1"),
    *("conditional_accuracy", "nll_token", "accuracy", "ece_token", "code_usage"),
)
FEATURE_WIDTHS = {  # feature network → number of features of FID
    "digits": 64,
    "inception-v3-compat": 2048,
    "vgg16": 4096,
    "dinov2-vit-s-14": 384,
    "dinov2-vit-b-14": 768,
    "dinov2-vit-l-14": 1024,
    "dinov2-vit-g-14": 1536,
    "clip-rn50": 1024,
    "clip-rn101": 512,
    "clip-rn50x4": 640,
    "clip-rn50x16": 768,
    "clip-rn50x64": 1024,
    "clip-vit-b-32": 512,
    "clip-vit-b-16": 512,
    "clip-vit-l-14": 768,
    "clip-vit-l-14-336px": 768,
}
_SUFFIX = re.compile(r"(/scale_\d+)?$")


def names_for(*uses: str) -> tuple[str, ...]:
    """The metrics with one of these uses, in the order of the registry."""
    return tuple(name for name, entry in METRICS.items() if entry.use in uses)


def metric(name: str) -> Metric:
    """The metric of this name, without its scale, part or `_tempered` suffix.

    Raises:
        ConfigError: unknown metric.
    """
    base = _SUFFIX.sub("", name).removesuffix("_tempered")
    entry = METRICS.get(base) or METRICS.get(base.split("/")[0])
    if entry is None:
        raise ConfigError(f"unknown metric {name!r}", nearest=nearest(name, METRICS))
    return entry
