"""Files of a folder that are no pictures, or whose names are no text: each is one that cannot be read, and nothing more."""

from __future__ import annotations

import hashlib
import os
import struct

import pytest
from PIL import Image

from uvar_tune.config.schema import DataConfig
from uvar_tune.data import load_images
from uvar_tune.data.folder import read_image
from uvar_tune.data.verification import UNREADABLE
from uvar_tune.errors import ConfigError


def nowhere(path):
    path.symlink_to(path.parent / "nothing")


def round_about(path):
    path.symlink_to(path)


def device(path):
    path.symlink_to("/dev/zero")


def sparse(path):
    with path.open("wb") as handle:
        handle.truncate(3 << 30)


def misplaced(path):
    """A TIFF that gives the place of its pixels (tag 273) as a fraction."""
    Image.new("RGB", (20, 20)).save(path, "TIFF")
    content = path.read_bytes()
    path.write_bytes(content.replace(struct.pack("<HH", 273, 4), struct.pack("<HH", 273, 11)))


@pytest.mark.parametrize(
    "make, why",
    [
        (nowhere, "No such file"),
        (round_about, "symbolic links"),
        (device, "not a regular file"),
        (os.mkfifo, "not a regular file"),
        (sparse, "3,221,225,472 bytes, more than"),
        (lambda path: path.mkdir(), "directory"),
        (misplaced, "TypeError"),
    ],
)
def test_what_is_no_picture_is_refused_or_skipped(folder, make, why):
    path = folder / "train" / "cats" / "1.png"
    path.unlink()
    make(path)
    with pytest.raises(ConfigError, match=f"1 of 7 images cannot be read: .*cats/1.png .*{why}"):
        load_images(DataConfig(name="folder", path=str(folder), image_size=16), "train")
    with pytest.warns(match=why):
        found = load_images(DataConfig(name="folder", path=str(folder), image_size=16, on_corrupt="skip"), "train")
    assert found.labels_N.tolist() == [0, 0, 1, 1, 2, 2] and found.images[:].shape[0] == 6
    with pytest.raises(UNREADABLE):
        read_image(path)


def test_a_link_that_leads_somewhere_again_is_looked_at_again(folder):
    path = folder / "train" / "cats" / "1.png"
    path.rename(folder / "away.png")
    nowhere(path)
    with pytest.raises(ConfigError, match="1 of 7"):
        load_images(DataConfig(name="folder", path=str(folder), image_size=16), "train")
    (folder / "away.png").rename(folder / "train" / "cats" / "nothing")
    assert len(load_images(DataConfig(name="folder", path=str(folder), image_size=16), "train")) == 7


def test_names_that_are_no_utf8(folder):
    old = os.fsencode(folder / "train" / "cats") + b"/\xe9.png"
    os.rename(folder / "train" / "cats" / "1.png", old)
    found = load_images(DataConfig(name="folder", path=str(folder), image_size=16), "train")
    assert len(found) == 7 and found.images[:].shape[0] == 7
    with open(old, "w") as handle:
        handle.write("no picture")
    with pytest.raises(ConfigError, match=r"cats/\\xe9\.png: can no longer be read"):
        found.images[:3]
    with pytest.raises(ConfigError, match=r"cats/\\xe9\.png \(Unidentified") as refused:
        load_images(DataConfig(name="folder", path=str(folder), image_size=16), "train")
    str(refused.value).encode()
    with pytest.warns(match=r"xe9\.png"):
        found = load_images(DataConfig(name="folder", path=str(folder), image_size=16, on_corrupt="skip"), "train")
    assert found.skipped[0][0].encode().endswith(rb"cats/\xe9.png")


def test_the_hash_of_a_folder_is_that_of_names_and_contents(folder):
    """Caches are keyed by it."""
    (folder / "val" / "cats" / "0.png").rename(folder / "val" / "cats" / "é.png")
    digest = hashlib.sha256(b"lanczos-1.125/crop/white/exif/2/validation/16")
    for label, name in enumerate(("cats/é.png", "dogs/0.png", "owls/0.png")):
        content = hashlib.sha256((folder / "val" / name).read_bytes()).hexdigest()
        digest.update(f"{label}/{name}/{content}\n".encode())
    assert (
        load_images(DataConfig(name="folder", path=str(folder), image_size=16), "validation").sha256
        == digest.hexdigest()
    )
