"""Output files: no input is overwritten, and a path that cannot be written is refused before the work."""

from __future__ import annotations

import os

import pytest
import torch
from PIL import Image

from uvar_tune.cli.doctor import doctor
from uvar_tune.cli.evaluate import evaluate
from uvar_tune.cli.sample import check_grid, edit, generate
from uvar_tune.errors import ConfigError
from uvar_tune.io.outputs import check_directory, check_picture, unwritable_reason
from uvar_tune.training import save_checkpoint


@pytest.fixture
def place(tmp_path):
    """photo.png, another.png, notes.png (a text), empty.png; trial/checkpoints/64, a checkpoint as far as files go."""
    for name in ("photo.png", "another.png"):
        Image.new("RGB", (16, 16), (200, 20, 20)).save(tmp_path / name)
    (tmp_path / "notes.png").write_text("to be kept")
    (tmp_path / "empty.png").touch()
    save_checkpoint(
        tmp_path / "trial" / "checkpoints" / "64",
        var_state={"x": torch.ones(1)},
        config={},
        tokenizer={"path": str(tmp_path / "notes.png")},
        training_state={"images": 64},
    )
    return tmp_path


def contents(place):
    return {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}


def test_pictures_are_replaced_and_made(place):
    for out in (
        "another.png",
        "empty.png",
        "new.PNG",
        "deep/er/new.png",
        "deep/checkpoints/new.png",
        "trial/samples/new.png",
    ):
        check_picture(str(place / out), [str(place / "photo.png"), str(place / "trial"), None])
    assert not (place / "deep").exists()


REFUSED = {
    "the input": ("photo.png", "is the input .*photo.png"),
    "the input by a link": ("link.png", "is the input .*photo.png"),
    "the input by a hard link": ("hard.png", "is the input .*photo.png"),
    "the weights": (
        "trial/checkpoints/64/var.safetensors",
        "is inside .*checkpoints/64, among the files of checkpoints",
    ),
    "in a checkpoint": ("trial/checkpoints/64/x.png", "is inside .*checkpoints/64,"),
    "among checkpoints": ("trial/checkpoints/x.png", "is inside .*checkpoints,"),
    "in a checkpoint by a link": ("shortcut/x.png", "is inside .*checkpoints/64,"),
    "no PNG": ("notes.png", "exists and is not a PNG file"),
    "a directory": (".", "exists and is not a file"),
    "another suffix": ("x.jpg", "does not end in .png.*did you mean '.*/x.png'"),
    "no suffix": ("deep/x", "does not end in .png.*did you mean '.*/deep/x.png'"),
    "below a file": ("notes.png/x.png", "cannot be written: .*notes.png is not a directory"),
    "too long": ("x" * 300 + ".png", "cannot be written: File name too long"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_picture_would_destroy(place, name):
    (place / "link.png").symlink_to("photo.png")
    os.link(place / "photo.png", place / "hard.png")
    (place / "shortcut").symlink_to(place / "trial" / "checkpoints" / "64")
    out, message = REFUSED[name]
    before = contents(place)
    with pytest.raises(ConfigError, match=f"^--out: .*{message}"):
        check_picture(str(place / out), [str(place / "photo.png"), str(place / "trial")])
    assert contents(place) == before


def test_directories_that_can_be_written(place):
    check_directory(place / "a" / "b")
    assert unwritable_reason(place / "a") is None and not (place / "a").exists()
    (place / "dangling").symlink_to("nowhere")
    for path in (place / "notes.png", place / "dangling" / "x", "/proc/x", "/dev/null/x"):
        with pytest.raises(ConfigError, match="^--out: .* cannot be written: "):
            check_directory(path)


def test_commands_check_outputs_first(place):
    """There is no checkpoint either, but the output is refused before it is opened."""
    photo, nothing = str(place / "photo.png"), str(place / "nothing")
    before = contents(place)
    with pytest.raises(ConfigError, match="--out: .* is the input"):
        edit("inpaint", [nothing, photo], out=photo, box="4,4,9,9")
    with pytest.raises(ConfigError, match="--out: .* is the input"):
        edit("inpaint", [nothing, str(place / "another.png")], out=photo, mask=photo)
    with pytest.raises(ConfigError, match="--out: .* among the files"):
        generate(str(place / "trial/checkpoints/64/var.safetensors"), nothing)
    with pytest.raises(ConfigError, match="--out: /dev/null/x.png cannot be written"):
        generate("/dev/null/x.png", nothing)
    with pytest.raises(ConfigError, match="--tokenizer: .*elsewhere does not exist"):
        generate(str(place / "x.png"), nothing, tokenizer=str(place / "elsewhere"))
    with pytest.raises(ConfigError, match="--out: /dev/null/x cannot be written"):
        evaluate(nothing, "table2", out="/dev/null/x")
    assert contents(place) == before


def test_unused_image_folders_are_refused(place):
    with pytest.raises(ConfigError, match="--ood: .*elsewhere does not exist"):
        evaluate("nothing", "table2", ood=str(place / "elsewhere"))
    with pytest.raises(
        ConfigError, match="--imagenet-c: .* used by table3, not by table2; did you mean '--tables table3'"
    ):
        evaluate("nothing", "table2", imagenet_c=str(place))
    with pytest.raises(ConfigError, match="one of: .*, all.; did you mean 'all'"):
        evaluate("nothing", "al")


def test_too_large_grids_are_refused():
    check_grid(1000, 10)
    check_grid(1000, 1, size=256)
    for labels, count, size, message in (
        (1, 10**8, 1, "takes at most 10,000; did you mean '10000'"),
        (1000, 10, 256, "of 256x256 px; one picture takes at most 1,525; did you mean '1'"),
        (2000, 1, 256, "^--label: .* takes at most 1,525"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_grid(labels, count, size)


def test_the_doctor_of_a_root_that_is_none(place, capsys, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for root in (place / "notes.png", "/proc/x"):
        assert doctor(str(root)) == 1
        assert f"BAD  storage  {root} cannot be written" in capsys.readouterr().out
    assert doctor(str(place / "runs")) == 0 and not (place / "runs").exists()
    assert "GiB free, writable" in capsys.readouterr().out
