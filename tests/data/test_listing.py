"""Folders of photographs as users have them: clutter, subfolders, further formats, rotated photographs, numbered classes."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from PIL import Image

from uvar_tune.config.schema import DataConfig
from uvar_tune.data import build_token_cache, load_images, resolve_label
from uvar_tune.data.image_set import to_unit
from uvar_tune.errors import ConfigError
from uvar_tune.model.scales import concat


def load(folder, split="train", **options):
    return load_images(DataConfig(name="folder", path=str(folder), image_size=16, **options), split)


def colour(path, value, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20), (value, value, value)).save(path, **options)


def test_clutter_is_ignored_and_reported(folder, caplog):
    clean = load(folder)
    for name in (".ipynb_checkpoints", "__MACOSX", "@eaDir"):
        colour(folder / "train" / name / "x.png", 9)
        colour(folder / "train" / "cats" / name / "x.png", 9)
    (folder / "train" / "cats" / "._0.png").write_bytes(b"\0\5\x16\7")
    (folder / "train" / "cats" / "Thumbs.db").write_bytes(b"x")
    caplog.set_level(logging.INFO, logger="uvar_tune")
    images = load(folder)
    load(folder)
    assert images.class_names == ["cats", "dogs", "owls"] and images.sha256 == clean.sha256
    notes = [note for note in images.notes if ": ignored" in note]
    assert len(notes) == 1 and [record.message for record in caplog.records].count(notes[0]) == 1
    for kind in ("2 .ipynb_checkpoints", "2 __MACOSX", "2 @eaDir", "1 ._* (AppleDouble)", "1 Thumbs.db"):
        assert kind in notes[0]


def test_subfolders_are_counted_or_read(folder):
    for year in ("2020", "2021"):
        for i in range(5):
            colour(folder / "train" / "cats" / year / f"{i}.png", i)
    (folder / "train" / "cats" / "2021" / "round").symlink_to(folder / "train" / "cats")
    flat, nested = load(folder), load(folder, nested=True)
    assert flat.labels_N.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert any("files in subfolders of the classes, not read: 10 (data.nested: true" in note for note in flat.notes)
    assert nested.labels_N.tolist() == [0] * 13 + [1, 1, 2, 2] and not any(
        "files in subfolders" in note for note in nested.notes
    )
    for image in (folder / "train" / "cats").glob("*.png"):
        image.unlink()
    with pytest.raises(ConfigError, match="no images of class 'cats' .*in subfolders of the classes, not read: 10"):
        load(folder)


def test_other_formats_are_counted_or_read(folder):
    place = folder / "train" / "dogs"
    for name, kind in {"a.gif": "GIF", "b.jfif": "JPEG", "c.JFIF": "JPEG", "d.jp2": "JPEG2000", "bare": "JPEG"}.items():
        colour(place / name, 100, format=kind)
    (place / "list.txt").write_text("x", encoding="utf-8")
    (folder / "train" / "README.md").write_text("x", encoding="utf-8")
    notes = " ".join(load(folder).notes)
    assert "files of other formats, not read: 2 .jfif" in notes and "1 without extension" in notes
    assert "outside the class folders, not read: 1" in notes
    images = load(folder, formats=("png", "gif", "jfif", "jp2", "none"))
    assert [path.name for path in images.images.paths[3:8]] == ["0.png", "1.png", "a.gif", "b.jfif", "bare"]
    assert len(images) == 12 and int(images.images[5].float().mean()) == 100


def test_unknown_class_of_validation_is_reported(folder):
    colour(folder / "val" / "birds" / "0.png", 1)
    assert any("no such class: birds" in note for note in load(folder, "validation").notes)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_photographs_are_turned_upright(folder, suffix):
    """Pixels turned by 90° with orientation 6, as phones store them: the bright half is at the top."""
    upright = Image.fromarray(np.repeat(np.array([255] * 20 + [0] * 20, np.uint8)[:, None], 24, axis=1)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    path = folder / "val" / "cats" / f"0.{suffix}"
    (folder / "val" / "cats" / "0.png").unlink()
    upright.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    pixels = load(folder, "validation").images[0].float()
    assert pixels[:, :6].mean() > 245 and pixels[:, -6:].mean() < 10


def test_one_crop_is_the_centre(folder, vqvae, tmp_path, caplog):
    pictures = load_images(DataConfig(name="folder", path=str(folder), image_size=8), "train")
    caplog.set_level(logging.INFO, logger="uvar_tune")
    cache = build_token_cache(tmp_path / "one", pictures, vqvae)
    assert np.array_equal(cache.tokens_NL, concat(vqvae.encode(to_unit(pictures.images[:]))).numpy())
    assert cache.class_names == ("cats", "dogs", "owls") and not [r for r in caplog.records if "crops" in r.message]
    build_token_cache(tmp_path / "three", pictures, vqvae, crops=3)
    assert any("3 random crops of each of 7 images" in record.message for record in caplog.records)


def test_labels_resolve_by_name_then_number(folder):
    for split in ("train", "val"):
        for old, new in (("cats", "1"), ("dogs", "10"), ("owls", "2")):
            (folder / split / old).rename(folder / split / new)
    names = load(folder).class_names
    assert names == ["1", "10", "2"] and "0 = 1, 1 = 10, 2 = 2" in load(folder).notes[0]
    assert [resolve_label(text, names, 3) for text in ("1", "2", "10")] == [0, 2, 1]
    assert resolve_label("1", ["cats", "dogs"], 2) == resolve_label("dogs", ["cats", "dogs"], 2) == 1
    assert resolve_label("7", [], 10) == 7
    for text, known, near in (
        ("0", names, None),
        ("dgs", ["cats", "dogs"], "dogs"),
        ("10", [], "9"),
        ("cats", [], None),
    ):
        with pytest.raises(ConfigError, match="--label: label") as refused:
            resolve_label(text, known, len(known) or 10)
        assert near is None or refused.value.nearest == near
