"""The paper's figures (Tables 2, 3, 5 and 7) as data, shown next to measured numbers and marked as published.

Their resolutions, sample counts and feature networks differ from ours and are mostly unstated, so code never compares
them with a measured number: a reader sees both. The paper's text also gives AFHQ's FID as "58 to 46"; its Table 2,
copied here, as 54.59 and 46.97.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

STATUS = "published"
BASELINE, OURS = "baseline", "ours"


@dataclass(frozen=True)
class Published:
    """One figure of the paper.

    Attributes:
        metric: our metric of it; None if the paper's text does not identify it.
        printed: the digits as printed, e.g. `68.0`.
        method: `baseline` (cross-entropy alone) or `ours`.
        table: the table that prints it.
        dataset: "unstated" if the paper does not say.
        model: "unstated" if the paper does not say.
        unit: as printed.
        spread: the printed ±.
        good_range: what the paper calls good, if it does.
        label: name in texts; by default the title of the metric's column.
    """

    metric: str | None
    printed: str
    method: str
    table: str
    dataset: str
    model: str
    unit: str = ""
    spread: str | None = None
    good_range: str = ""
    label: str = ""

    @property
    def value(self) -> float:
        """The printed number."""
        return float(self.printed)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"status": STATUS, "value": self.value, **dataclasses.asdict(self)}

    def text(self) -> str:
        """E.g. ``4.18 ± 0.19``, ``74 GB``."""
        spread = "" if self.spread is None else f" ± {self.spread}"
        return f"{self.printed}{spread}{' ' + self.unit if self.unit else ''}"


def _table2() -> list[Published]:
    rows = {
        ("baseline", "VAR-d16"): (("54.59", "4.18", "0.19"), ("20.45", "15.20", "0.82")),
        ("ours", "VAR-d16"): (("46.97", "4.43", "0.16"), ("20.02", "15.86", "0.54")),
        ("baseline", "VAR-d20"): (("46.12", "4.39", "0.17"), ("17.28", "16.42", "0.71")),
        ("ours", "VAR-d20"): (("39.68", "4.72", "0.14"), ("16.91", "17.15", "0.48")),
    }
    figures = []
    for (method, model), printed in rows.items():
        for dataset, (fid, score, spread) in zip(("AFHQ", "ImageNet-100"), printed, strict=True):
            figures += [
                Published("fid", fid, method, "Table 2", dataset, model),
                Published("is", score, method, "Table 2", dataset, model, spread=spread),
            ]
    return figures


def _table3() -> list[Published]:
    rows = {"baseline": ("74.6", "69.7", "68.0"), "ours": ("72.0", "73.5", "71.7")}
    figures = []
    for method, (nll, auroc, mce) in rows.items():
        figures += [
            # in nats it exceeds ln V per token, and per image of 680 tokens it would be 0.1 per token
            Published(None, nll, method, "Table 3", "unstated", "unstated", "(unit unstated)", label="NLL"),
            Published("auroc_ood/ImageNet-O", auroc, method, "Table 3", "ImageNet-O", "unstated", "%", label="AUROC"),
            Published("mce", mce, method, "Table 3", "ImageNet-C", "unstated", "(divisor unstated)"),
        ]
    return figures


def _table5() -> list[Published]:
    rows = {
        "parameters": ("300", "M"),
        "batch_size": ("768", ""),
        "memory_gib": ("74", "G"),
        "epoch_sec": ("27", "h / 200 epochs"),
    }
    return [
        Published(metric, value, method, "Table 5", "ImageNet-100", "VAR on 8 DGX-A100 80G", unit)
        for method in (BASELINE, OURS)
        for metric, (value, unit) in rows.items()
    ]


def _table7() -> list[Published]:
    rows = {
        "ssim_pairwise": ("0.32", "0.2–0.4"),
        "diversity_ssim": ("0.68", "0.6–0.8"),
        "precision": ("0.62", "0.5–0.8"),
        "recall": ("0.42", "0.4–0.6"),
        "f1": ("0.50", "0.5–0.7"),
        "density": ("0.95", "0.8–1.2"),
        "coverage": ("0.45", "0.4–0.6"),
    }
    return [
        Published(metric, value, OURS, "Table 7", "unstated", "unstated", good_range=good)
        for metric, (value, good) in rows.items()
    ]


PUBLISHED: dict[str, tuple[Published, ...]] = {
    "table2": tuple(_table2()),
    "table3": tuple(_table3()),
    "table5": tuple(_table5()),
    "table7": tuple(_table7()),
    "calibration": (),
}
