"""The digits and their split; folders of images: recipe, pixel formats, errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from uvar_tune.config.schema import DataConfig
from uvar_tune.data import load_images
from uvar_tune.data.verification import CorruptImages
from uvar_tune.errors import ConfigError


@pytest.fixture(scope="module")
def digits():
    return {split: load_images(DataConfig(), split) for split in ("train", "validation")}


def test_digits_split_is_complete_and_stratified(digits):
    from sklearn.datasets import load_digits

    train, held_out = digits["train"], digits["validation"]
    assert (
        len(train) + len(held_out) == 1797
        and train.images.shape[1:] == (3, 16, 16)
        and train.images.dtype == torch.uint8
    )
    share = held_out.labels_N.bincount() / (train.labels_N.bincount() + held_out.labels_N.bincount())
    assert share.min() > 0.19 and share.max() < 0.21
    raw = torch.as_tensor(load_digits().images, dtype=torch.float32)[:, None] * 255 / 16
    whole = torch.nn.functional.interpolate(raw, size=16, mode="bilinear").round().to(torch.uint8).expand(-1, 3, -1, -1)
    pairs = {
        split: {(image.numpy().tobytes(), int(label)) for image, label in zip(s.images, s.labels_N, strict=True)}
        for split, s in digits.items()
    }
    known = {
        (image.contiguous().numpy().tobytes(), int(label))
        for image, label in zip(whole, load_digits().target, strict=True)
    }
    assert pairs["train"] | pairs["validation"] == known
    assert not pairs["train"] & pairs["validation"]


def test_digits_are_reproducible(digits):
    again = load_images(DataConfig(), "train")
    assert again.sha256 == digits["train"].sha256 != digits["validation"].sha256
    assert torch.equal(again.images, digits["train"].images)


def test_classes_select_and_number(digits):
    some = load_images(DataConfig(classes=("7", "1")), "train")
    assert some.class_names == ["7", "1"] and some.sha256 != digits["train"].sha256
    counts = digits["train"].labels_N.bincount()
    assert some.labels_N.bincount().tolist() == [int(counts[7]), int(counts[1])]


def test_another_size_of_digits():
    small = load_images(DataConfig(image_size=8), "validation")
    assert small.images.shape[1:] == (3, 8, 8) and set(small.images.unique().tolist()) <= {
        round(v * 255 / 16) for v in range(17)
    }


def test_folder(folder):
    train, held_out = (
        load_images(DataConfig(name="folder", path=str(folder), image_size=16), split)
        for split in ("train", "validation")
    )
    assert train.class_names == held_out.class_names == ["cats", "dogs", "owls"]
    assert train.labels_N.tolist() == [0, 0, 0, 1, 1, 2, 2] and held_out.labels_N.tolist() == [0, 1, 2]
    assert len(train.images) == 7 and train.images[2:5].shape == (3, 3, 16, 16) and train.images[6].shape == (3, 16, 16)
    assert torch.equal(torch.as_tensor(train.images), train.images[:])
    assert train.images[0][1].unique().tolist() == [0] and train.images[3][1].unique().tolist() == [40]


def test_recipe_of_a_folder(folder):
    """Shorter side to round(1.125·16) = 18, so 40x24 → 30x18; the centre, or a seeded position for each image and crop."""
    train = load_images(DataConfig(name="folder", path=str(folder), image_size=16), "train")
    with Image.open(folder / "train" / "cats" / "0.png") as image:
        shrunk = np.asarray(image.convert("RGB").resize((30, 18), Image.Resampling.LANCZOS))
    assert np.array_equal(train.images[0].permute(1, 2, 0).numpy(), shrunk[1:17, 7:23])
    crops = train.crops([0] * 12, range(12))
    places = {crop.numpy().tobytes() for crop in crops}
    possible = {
        np.ascontiguousarray(shrunk[top : top + 16, left : left + 16].transpose(2, 0, 1)).tobytes()
        for top in range(3)
        for left in range(15)
    }
    assert 1 < len(places) and places <= possible
    assert torch.equal(train.crops([3, 0], [1, 5])[1], crops[5])
    held_out = load_images(DataConfig(name="folder", path=str(folder), image_size=16), "validation")
    assert torch.equal(held_out.crops([1], [3])[0], held_out.images[1])


def test_every_kind_of_pixels_becomes_rgb(folder):
    place = folder / "train" / "dogs"
    grey = np.full((20, 20), 100, np.uint8)
    Image.fromarray(grey).save(place / "a-grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(place / "b-sixteen.png")
    Image.new("RGBA", (20, 20), (10, 20, 30, 0)).save(place / "c-clear.png")
    Image.new("CMYK", (20, 20), (0, 0, 0, 255)).save(place / "d-cmyk.jpg")
    Image.new("P", (20, 20), 3).save(place / "e-palette.png")
    Image.new("1", (20, 20), 1).save(place / "f-bits.png")
    images = load_images(DataConfig(name="folder", path=str(folder), image_size=16, classes=("dogs",)), "train").images
    assert [path.name[0] for path in images.paths[2:]] == list("abcdef")
    pixels = images[2:]
    assert pixels[0].unique().tolist() == [100] and pixels[1].unique().tolist() == [100]
    assert pixels[2].unique().tolist() == [255]  # transparent, on white
    assert pixels[3].max() < 40 and pixels[5].unique().tolist() == [255]


def test_content_hash_follows_content(folder):
    def sha256(**options):
        return load_images(DataConfig(name="folder", path=str(folder), image_size=16, **options), "train").sha256

    first = sha256()
    assert sha256() == first != load_images(DataConfig(name="folder", path=str(folder), image_size=24), "train").sha256
    Image.new("RGB", (30, 30), "red").save(folder / "train" / "owls" / "1.png")
    assert sha256() != first
    assert sha256(classes=("cats", "dogs")) != sha256()


def break_two(folder):
    whole = (folder / "train" / "cats" / "1.png").read_bytes()
    (folder / "train" / "cats" / "1.png").write_bytes(whole[: len(whole) // 2])
    (folder / "train" / "dogs" / "0.png").write_text("no picture")


def test_corrupt_images_are_refused_by_name(folder):
    break_two(folder)
    with pytest.raises(ConfigError, match=r"2 of 7 images cannot be read: .*cats/1\.png.*dogs/0\.png"):
        load_images(DataConfig(name="folder", path=str(folder), image_size=16), "train")


def test_corrupt_images_are_skipped_with_warning(folder):
    break_two(folder)
    with pytest.warns(CorruptImages, match="2 of 7 images cannot be read"):
        actual = load_images(DataConfig(name="folder", path=str(folder), image_size=16, on_corrupt="skip"), "train")
    assert actual.labels_N.tolist() == [0, 0, 1, 2, 2] and actual.images[:].shape[0] == 5
    assert [path.split("/")[-2:] for path, _ in actual.skipped] == [["cats", "1.png"], ["dogs", "0.png"]]


def test_decompression_bomb_is_refused(folder, monkeypatch):
    """A file of 100 kB that would unpack to more pixels than allowed is not unpacked."""
    Image.new("1", (12_000, 9_000)).save(folder / "train" / "cats" / "bomb.png")
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(ConfigError, match="bomb.png .*12000x9000 pixels"):
        load_images(DataConfig(name="folder", path=str(folder), image_size=16), "train")


def test_file_corrupted_later_is_named(folder):
    train = load_images(DataConfig(name="folder", path=str(folder), image_size=16), "train")
    (folder / "train" / "owls" / "0.png").write_text("gone")
    with pytest.raises(ConfigError, match=r"owls/0\.png: can no longer be read"):
        train.images[5]


def empty_class(folder):
    for file in (folder / "val" / "dogs").iterdir():
        file.unlink()


@pytest.mark.parametrize(
    "prepare, options, message",
    [
        (None, {"path": "nowhere"}, "nowhere is not a directory"),
        (empty_class, {}, "no images of class 'dogs'"),
        (lambda folder: (folder / "train").rename(folder / "training"), {}, "train is not a directory"),
        (None, {"classes": ("cats", "dgs")}, "class 'dgs' is not in .*did you mean 'dogs'"),
        (None, {"classes": ("cats", "cats")}, "each once"),
    ],
)
def test_bad_folders_are_refused(folder, prepare, options, message):
    if prepare:
        prepare(folder)
    with pytest.raises(ConfigError, match=message):
        load_images(
            DataConfig(name="folder", **{"path": str(folder), "image_size": 16, **options}),
            "validation",
        )


def test_empty_folder_and_unknown_names(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
    with pytest.raises(ConfigError, match="holds no class folders"):
        load_images(DataConfig(name="folder", path=str(tmp_path)), "train")
    with pytest.raises(ConfigError, match="unknown split 'val'"):
        load_images(DataConfig(), "val")
    with pytest.raises(ConfigError, match="class '10' is not in the digits"):
        load_images(DataConfig(classes=("10",)), "train")
