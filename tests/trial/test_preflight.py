"""Inputs that every trial would refuse are found before a study exists."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.helpers.commands import TINY
from uvar_tune.config.loading import validate
from uvar_tune.errors import ConfigError
from uvar_tune.trial.preflight import check_inputs


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Writes an image folder with so many images a split; its `data` section."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def write(train: int, validation: int) -> dict:
        for split, count in (("train", train), ("val", validation)):
            (tmp_path / split / "a").mkdir(parents=True)
            for i in range(count):
                Image.new("L", (16, 16), i).save(tmp_path / split / "a" / f"{i}.png")
        return {"name": "folder", "path": str(tmp_path), "image_size": 16}

    return write


def config(**sections):
    tree = {name: {**values, **sections.get(name, {})} for name, values in TINY.items()}
    tree["data"] = sections.get("data", TINY["data"])
    return validate(tree, "test")


@pytest.mark.parametrize(
    ("counts", "sections", "message"),
    [
        ((12, 16), {}, "training.batch_size: 12 training images are fewer than a batch of 64; did you mean '12'"),
        (
            (12, 16),
            {"training": {"batch_size": 8}},
            "tokenizer.batch_size: 12 training images are fewer than a batch of 16",
        ),
        (
            (12, 16),
            {"training": {"batch_size": 8}, "tokenizer": {"batch_size": 4}},
            "evaluation.reference_split: the train split has 12 images",
        ),
        (
            (64, 15),
            {"evaluation": {"reference_split": "validation"}},
            "evaluation.reference_split: the validation split has 15 images",
        ),
    ],
)
def test_too_few_images(folder, counts, sections, message):
    with pytest.raises(ConfigError, match=message):
        check_inputs(config(data=folder(*counts), **sections))


def test_batch_sizes_of_the_space_count(folder):
    space = {"training.batch_size": {"role": "nuisance", "type": "categorical", "choices": [8, 64], "baseline": 8}}
    data, tokenizer = folder(32, 1), {"batch_size": 4}
    assert check_inputs(config(data=data, tokenizer=tokenizer, training={"batch_size": 8})) is None
    with pytest.raises(ConfigError, match="32 training images are fewer than a batch of 64"):
        check_inputs(config(data=data, tokenizer=tokenizer, space=space))


def test_unusable_weights_and_precision(tmp_path):
    (tmp_path / "damaged.pth").write_bytes(b"not weights")
    for section, values, message in (
        ("training", {"precision": "bf16"}, "training.precision: bf16 needs a GPU"),
        ("training", {"init_from": str(tmp_path / "nowhere")}, "nowhere"),
        ("training", {"init_from": str(tmp_path / "damaged.pth")}, "damaged.pth"),
        ("tokenizer", {"path": str(tmp_path / "nowhere")}, "there is no tokenizer here"),
        (
            "evaluation",
            {"extractor": "inception-v3-compat", "weights": str(tmp_path / "damaged.pth")},
            "evaluation.weights: .*damaged.pth",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            check_inputs(config(**{section: values}))


def test_safetensors_file_in_place_of_a_pth_file(tmp_path):
    save_file({"weight": torch.zeros(1)}, tmp_path / "var.pth")
    with pytest.raises(
        ConfigError, match=r"var.pth.*it is a safetensors file; a file of torch.save \(.pth\) is expected"
    ):
        check_inputs(config(training={"init_from": str(tmp_path / "var.pth")}))
