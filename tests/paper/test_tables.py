import dataclasses
import io
import json

import pytest
from rich.console import Console

from uvar_tune.config.schema import DataConfig
from uvar_tune.data import load_images
from uvar_tune.errors import ConfigError
from uvar_tune.evaluation.protocol import Origin, Protocol, ProtocolMismatch, held_out_protocol
from uvar_tune.metrics import metric
from uvar_tune.paper.published import PUBLISHED
from uvar_tune.paper.tables import Column, Number, Table, write_tables

PROTOCOL = Protocol(
    metric_version="1",
    samples=1000,
    reference="aa",
    feature_network="digits",
    weights="bb",
    resizer="none",
    precision="float32",
    cfg_convention="ramp",
)
ORIGIN = Origin(configuration="cc", checkpoint="c/1", seeds="evaluation from 7", cfg_scale=1.5)
COLUMNS = (Column("fid", "FID"), Column("is", "IS"), Column("accuracy", "Accuracy (%)", 100, 1))


def number(value, spread=None, **changes):
    return Number(value, dataclasses.replace(PROTOCOL, **changes), ORIGIN, spread)


def table(**changes):
    rows = {
        "baseline": {"fid": number(54.0), "is": number(4.0, 0.1)},
        "ours": {"fid": number(46.97), "is": number(4.5, 0.125), "accuracy": number(0.5)},
    }
    return Table(
        **{
            "name": "table2",
            "title": "T",
            "columns": COLUMNS,
            "rows": rows,
            "published": PUBLISHED["table2"],
            "notes": ("A note.",),
            **changes,
        }
    )


def test_published_figures():
    """Samples of each table against the paper's text."""
    figures = {(p.table, p.metric, p.method, p.dataset, p.model): p for table in PUBLISHED.values() for p in table}
    assert figures["Table 2", "fid", "ours", "AFHQ", "VAR-d16"].text() == "46.97"
    assert figures["Table 2", "is", "baseline", "ImageNet-100", "VAR-d20"].text() == "16.42 ± 0.71"
    assert figures["Table 3", "mce", "ours", "ImageNet-C", "unstated"].value == 71.7
    assert (
        figures["Table 5", "epoch_sec", "ours", "ImageNet-100", "VAR on 8 DGX-A100 80G"].text() == "27 h / 200 epochs"
    )
    assert figures["Table 7", "coverage", "ours", "unstated", "unstated"].good_range == "0.4–0.6"
    assert [len(PUBLISHED[name]) for name in ("table2", "table3", "table5", "table7")] == [16, 6, 8, 7]
    assert all(
        (p.metric is None or metric(p.metric).unit) and p.as_dict()["status"] == "published" for p in figures.values()
    )


def test_one_line_a_method():
    headings, lines = table().grid()
    assert headings == ["Method", "FID ↓", "IS ↑", "Accuracy (%) ↑", "published"]
    assert lines[0][:4] == ["baseline", "54.00", "4.00 ± 0.10", "–"] and lines[1][:4] == [
        "ours",
        "46.97",
        "4.50 ± 0.12",
        "50.0",
    ]
    assert lines[1][4].startswith("AFHQ VAR-d16: FID 46.97, IS 4.43 ± 0.16; ImageNet-100 VAR-d16: FID 20.02")


def test_published_baseline_has_a_line():
    headings, lines = table(rows={"ours": {"fid": number(1.0)}}).grid()
    assert [line[:2] for line in lines] == [["baseline", "–"], ["ours", "1.00"]] and "54.59" in lines[0][4]


def test_one_line_a_metric():
    rows = {"ours": {"precision": number(0.5)}}
    headings, lines = table(
        columns=(Column("precision", "Precision"),), rows=rows, published=PUBLISHED["table7"], transposed=True
    ).grid()
    assert Column("density", "Density").heading() == "Density → 1"
    assert Column("code_entropy", "Entropy").heading() == "Entropy"
    assert headings == ["Metric", "ours", "published"] and lines == [["Precision ↑", "0.50", "0.62 (good: 0.5–0.8)"]]


def test_unequal_protocols_are_refused():
    with pytest.raises(ProtocolMismatch, match="protocol.samples: 1000 and 500 differ"):
        table(rows={"baseline": {"fid": number(1.0)}, "ours": {"fid": number(1.0, samples=500)}})
    with pytest.raises(ConfigError, match="fid is nan, not a number"):
        table(rows={"ours": {"fid": number(float("nan"))}})


def test_files_hold_protocol_and_origin(tmp_path):
    paths = write_tables([table()], tmp_path / "new" / "place", {"ours": "c/1"})
    assert [path.name for path in paths] == ["table2.json", "table2.md"]
    tree = json.loads(paths[0].read_text())
    for row in tree["rows"].values():
        for one in row.values():
            assert Protocol.from_dict(one["protocol"]) == PROTOCOL and Origin.from_dict(one["origin"]) == ORIGIN
    assert tree["rows"]["ours"]["fid"]["direction"] == "minimize" and tree["published"][0]["status"] == "published"
    text = paths[1].read_text()
    assert "| ours | 46.97 | 4.50 ± 0.12 | 50.0 | AFHQ VAR-d16" in text and "A note." in text
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_tables([table()], tmp_path / "file" / "below", {})


def test_rich_table():
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(table().rich())
    text = console.export_text()
    assert "published" in text and "4.50 ± 0.12" in text and "A note." in text


def test_likelihoods_of_two_tokenizers_are_refused():
    images = load_images(DataConfig(), "validation")
    one, other = (held_out_protocol(tokenizer, images, resizer="native 16") for tokenizer in ("aa", "bb"))
    assert one.samples == len(images.labels_N) and one.reference == images.sha256
    with pytest.raises(ProtocolMismatch, match="protocol.weights"):
        Table(
            "table3",
            "T",
            (Column("nll_token", "NLL"),),
            {"baseline": {"nll_token": Number(1.0, one, ORIGIN)}, "ours": {"nll_token": Number(1.0, other, ORIGIN)}},
        )


def test_published_table_3_is_shown_as_printed():
    """The paper does not say what its NLL is of; its AUROC is of ImageNet-O alone."""
    columns = (Column("nll_image", "NLL / image"), Column("auroc_ood", "AUROC (%), mean"), Column("mce", "mCE"))
    _, lines = table(columns=columns, rows={"ours": {}}, published=PUBLISHED["table3"]).grid()
    assert lines[0][-1] == (
        "NLL 74.6 (unit unstated); ImageNet-O: AUROC 69.7 %; ImageNet-C: mCE 68.0 (divisor unstated)"
    )
