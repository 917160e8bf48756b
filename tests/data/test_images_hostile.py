"""Files of a folder that are no images, or whose names are not text: each counts as one unreadable file."""

from __future__ import annotations

import hashlib
import os
import struct

import numpy as np
import pytest
from PIL import Image

from uvar_tune.config.schema import DataConfig
from uvar_tune.data import load_images
from uvar_tune.data.folder import read_image
from uvar_tune.data.verification import UNREADABLE
from uvar_tune.errors import ConfigError


def dangling(path):
    path.symlink_to(path.parent / "nothing")


def circular(path):
    path.symlink_to(path)


def device(path):
    path.symlink_to("/dev/zero")


def sparse(path):
    with path.open("wb") as handle:
        handle.truncate(3 << 30)


def misplaced(path):
    """A TIFF that stores the offset of its pixels (tag 273) as a fraction."""
    Image.new("RGB", (20, 20)).save(path, "TIFF")
    content = path.read_bytes()
    path.write_bytes(content.replace(struct.pack("<HH", 273, 4), struct.pack("<HH", 273, 11)))


def floating_point(path):
    Image.fromarray(np.linspace(0, 1, 400, dtype=np.float32).reshape(20, 20)).save(path, "TIFF")


def thirty_two_bits(path):
    Image.fromarray(np.full((20, 20), 1 << 20, np.int32)).save(path, "TIFF")


@pytest.mark.parametrize(
    "make, why",
    [
        (floating_point, "range is unknown"),
        (thirty_two_bits, "exceed 16 bits"),
        (dangling, "No such file"),
        (circular, "symbolic links"),
        (device, "not a regular file"),
        (os.mkfifo, "not a regular file"),
        (sparse, "3,221,225,472 bytes, more than"),
        (lambda path: path.mkdir(), "directory"),
        (misplaced, "TypeError"),
    ],
)
def test_no_image_is_refused_or_skipped(folder, make, why):
    path = folder / "train" / "cats" / "1.png"
    path.unlink()
    make(path)
    with pytest.raises(ConfigError, match=f"1 of 7 images cannot be read: .*cats/1.png .*{why}"):
        load_images(DataConfig(name="folder", path=str(folder), image_size=16), "train")
    with pytest.warns(match=why):
        actual = load_images(DataConfig(name="folder", path=str(folder), image_size=16, on_corrupt="skip"), "train")
    assert actual.labels_N.tolist() == [0, 0, 1, 1, 2, 2] and actual.images[:].shape[0] == 6
    with pytest.raises(UNREADABLE):
        read_image(path)


def test_repaired_link_is_verified_again(folder):
    path = folder / "train" / "cats" / "1.png"
    path.rename(folder / "away.png")
    dangling(path)
    with pytest.raises(ConfigError, match="1 of 7"):
        load_images(DataConfig(name="folder", path=str(folder), image_size=16), "train")
    (folder / "away.png").rename(folder / "train" / "cats" / "nothing")
    assert len(load_images(DataConfig(name="folder", path=str(folder), image_size=16), "train")) == 7


def test_names_that_are_not_utf8(folder):
    old = os.fsencode(folder / "train" / "cats") + b"/\xe9.png"
    os.rename(folder / "train" / "cats" / "1.png", old)
    actual = load_images(DataConfig(name="folder", path=str(folder), image_size=16), "train")
    assert len(actual) == 7 and actual.images[:].shape[0] == 7
    with open(old, "w", encoding="utf-8") as handle:
        handle.write("no picture")
    with pytest.raises(ConfigError, match=r"cats/\\xe9\.png: can no longer be read"):
        actual.images[:3]
    with pytest.raises(ConfigError, match=r"cats/\\xe9\.png \(Unidentified") as refused:
        load_images(DataConfig(name="folder", path=str(folder), image_size=16), "train")
    str(refused.value).encode()
    with pytest.warns(match=r"xe9\.png"):
        actual = load_images(DataConfig(name="folder", path=str(folder), image_size=16, on_corrupt="skip"), "train")
    assert actual.skipped[0][0].encode().endswith(rb"cats/\xe9.png")


def test_folder_hash_is_of_names_and_contents(folder):
    """The hash is the key of caches."""
    (folder / "val" / "cats" / "0.png").rename(folder / "val" / "cats" / "é.png")
    digest = hashlib.sha256(b"lanczos-1.125/crop/white/exif/2/validation/16")
    for label, name in enumerate(("cats/é.png", "dogs/0.png", "owls/0.png")):
        content = hashlib.sha256((folder / "val" / name).read_bytes()).hexdigest()
        digest.update(f"{label}/{name}/{content}\n".encode())
    assert (
        load_images(DataConfig(name="folder", path=str(folder), image_size=16), "validation").sha256
        == digest.hexdigest()
    )
