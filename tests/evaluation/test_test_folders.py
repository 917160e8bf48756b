import pytest
import torch
from PIL import Image

from uvar_tune.errors import ConfigError
from uvar_tune.evaluation.robustness import tokenize
from uvar_tune.evaluation.test_folders import class_folders, imagenet_c


@pytest.fixture
def picture(tmp_path, digits):
    """Writes the n-th held-out digit as a PNG of 24x24."""

    def write(number, *parts):
        path = tmp_path.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(digits["validation"].images[number].permute(1, 2, 0).numpy())
        image.resize((24, 24)).save(path)
        return path

    return write


def test_class_folders_are_read_in_slices(picture, tmp_path, networks):
    for number in range(6):
        picture(number, "o", f"n0{number % 2}", f"{number}.png")
    images = class_folders(tmp_path / "o", image_size=8)
    assert images.class_names == ["n00", "n01"] and images.labels_N.tolist() == [0, 0, 0, 1, 1, 1]
    assert images.images[1:3].shape == (2, 3, 8, 8) and images.images[1:3].dtype == torch.uint8
    whole = tokenize(networks[1], images.images[0:6], chunk=4)
    assert torch.equal(tokenize(networks[1], images.images, chunk=4), whole)
    assert class_folders(tmp_path / "o", image_size=8, classes=["n01"]).labels_N.tolist() == [0, 0, 0]


def test_imagenet_c_needs_every_severity(picture, tmp_path):
    for kind in ("snow", "fog"):
        for severity in range(1, 6):
            for name in ("a", "b", "c"):
                picture(severity, "c", kind, str(severity), name, "x.png")
    sets = imagenet_c(tmp_path / "c", image_size=8, classes=["c", "a"])
    assert [(one.kind, one.severity) for one in sets] == [(k, s) for k in ("fog", "snow") for s in range(1, 6)]
    assert (
        sets[0].labels_N.tolist() == [0, 1] and len(sets[0].images) == 2
    )  # labels in the order of the classes asked for
    (tmp_path / "c" / "snow" / "3" / "c" / "x.png").unlink()
    with pytest.raises(ConfigError, match="snow/3: no images of class 'c'"):
        imagenet_c(tmp_path / "c", image_size=8, classes=["c", "a"])
    with pytest.raises(ConfigError, match="class 'd' is not in"):
        imagenet_c(tmp_path / "c", image_size=8, classes=["d"])


def test_unusable_folders_are_refused(picture, tmp_path):
    (tmp_path / "empty").mkdir()
    for read in (class_folders, lambda path, **sizes: imagenet_c(path, classes=["a"], **sizes)):
        with pytest.raises(ConfigError, match="empty: holds no folder"):
            read(tmp_path / "empty", image_size=8)
        with pytest.raises(ConfigError, match="nowhere: is not a directory"):
            read(tmp_path / "nowhere", image_size=8)
    good, torn = picture(0, "o", "a", "good.png"), picture(1, "o", "a", "torn.png")
    torn.write_bytes(torn.read_bytes()[:60])
    with pytest.raises(ConfigError, match="1 of 2 images cannot be read: .*torn.png"):
        class_folders(tmp_path / "o", image_size=8)
    with pytest.warns(UserWarning, match="1 of 2 images .*skipped"):
        assert len(class_folders(tmp_path / "o", image_size=8, on_corrupt="skip")) == 1
    assert good.exists()
