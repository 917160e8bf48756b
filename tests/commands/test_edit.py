"""Editing and sampling by the command line: the picture, official files, initial weights, errors."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from uvar_tune.commands.edit import Request, Row, fit_image, read_request, run_edit, save_picture
from uvar_tune.config.schema import Config, TokenizerConfig
from uvar_tune.errors import ConfigError
from uvar_tune.model import VAR, VQVAE, SamplingSettings, inpaint, save_official
from uvar_tune.pipeline import open_networks, restore
from uvar_tune.training import load_tokenizer, save_checkpoint, save_tokenizer
from uvar_tune.trial.factory import new_var

MODEL = {"depth": 1, "width": 32, "heads": 2}
TOKENIZER = {"vocab_size": 32, "code_dim": 8, "channels": 16, "channel_multipliers": (1, 2, 4), "scales": (1, 2, 3, 4)}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """ours, baseline: checkpoints; vae.pth, var.pth: the first in the official format; photo.png, larger than 16 px."""
    directory = tmp_path_factory.mktemp("edit")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vqvae = VQVAE(TokenizerConfig(**TOKENIZER)).eval()
    save_tokenizer(directory / "tokenizer", vqvae)
    config = Config.model_validate({"model": MODEL, "tokenizer": {"vocab_size": 32, "code_dim": 8, "channels": 16}})
    for i, name in enumerate(("ours", "baseline")):
        var = lively(new_var(config, vqvae, 3, seed=i))
        save_checkpoint(
            directory / name / "000000000064",
            var_state=var.state_dict(),
            config=config.model_dump(mode="json"),
            tokenizer={"path": str(directory / "tokenizer")},
            training_state={"images": 64},
            class_names=["cat", "dog", "owl"] if name == "ours" else ["dog", "cat", "owl"],
        )
        if name == "ours":
            save_official(vqvae, var, vae_path=directory / "vae.pth", var_path=directory / "var.pth")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(directory / "photo.png")
    Image.fromarray(pixels[:16, :16]).save(directory / "small.png")
    return directory


def lively(var):
    generator = torch.Generator().manual_seed(7)
    for parameter in var.parameters():
        parameter.data.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return var.eval()


def request(place, **changes) -> Request:
    return dataclasses.replace(
        Request(
            task="inpaint",
            checkpoint=str(place / "ours"),
            image=str(place / "small.png"),
            out=str(place / "out.png"),
            mask=None,
            box="4,4,12,12",
            label="dog",
            count=2,
            seed=5,
            baseline=None,
            sampling={"cfg_scale": 1.5, "cfg_ramp": 1.0},
            networks=NETWORKS,
        ),
        **changes,
    )


def cells(path, rows: int, columns: int) -> list[list[np.ndarray]]:
    """The images of the picture at the model's size: rows at the bottom, cells of 128 px, 8 px and captions between."""
    picture = np.asarray(Image.open(path).convert("RGB"))
    assert picture.shape[1] == 8 + columns * 136
    first = picture.shape[0] - rows * (128 + 17 + 8)
    tops, lefts = [first + 17 + row * 153 for row in range(rows)], [8 + column * 136 for column in range(columns)]
    return [[picture[top : top + 128 : 8, left : left + 128 : 8] for left in lefts] for top in tops]


def test_picture_holds_original_and_both_rows(place, log_lines):
    run_edit(request(place, baseline=str(place / "baseline")))
    (original, known, *ours), (no_image, nor_this, *baseline) = cells(place / "out.png", rows=2, columns=4)
    pixels = np.asarray(Image.open(place / "small.png"))
    hidden = np.zeros((16, 16), dtype=bool)
    hidden[4:12, 4:12] = True
    assert (original == pixels).all() and (known[~hidden] == pixels[~hidden]).all()
    assert len(np.unique(known[hidden], axis=0)) == 1
    assert (no_image == 255).all() and (nor_this == 255).all()
    for name, label, actual in (("ours", 1, ours), ("baseline", 0, baseline)):
        var, vqvae, _ = restore(place / name)
        expected = inpaint(
            var,
            vqvae,
            torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255,
            ~torch.from_numpy(hidden),
            [label, label],
            SamplingSettings(cfg_scale=1.5),
            seeds=[5, 6],
        ).images
        expected = (expected * 255).round().permute(0, 2, 3, 1).numpy()
        assert (np.stack(actual) == expected).all()
    assert (
        any("completions: 2 of 2" in line for line in log_lines)
        and "label dog, CFG 1.5 (0 = off), ramp 1; checkpoint" in log_lines[-1]
    )


def test_box_and_mask_give_the_same_known_pixels(place):
    mask = np.zeros((16, 16), dtype=np.uint8)
    mask[4:12, 4:12] = 255
    Image.fromarray(mask).save(place / "mask.bmp")
    Image.fromarray(255 - mask).save(place / "around.png")
    by_box = [read_request(request(place, task=task), 16)[1] for task in ("inpaint", "outpaint")]
    by_mask = [
        read_request(request(place, box=None, mask=str(place / name)), 16)[1] for name in ("mask.bmp", "around.png")
    ]
    assert all(torch.equal(a, b) for a, b in zip(by_box, by_mask, strict=True))
    assert by_box[1][4:12, 4:12].all() and not by_box[1][0].any()


def test_image_and_mask_are_cropped_alike(place):
    """40x60 becomes 18x27, then its centre crop; a mask of the image's size is cropped alike."""
    image = Image.open(place / "photo.png")
    assert fit_image(image, 16).size == (16, 16)
    mask = np.zeros((40, 60), dtype=np.uint8)
    mask[:, 30:] = 255
    Image.fromarray(mask).save(place / "half.png")
    pixels, known, seen = read_request(
        request(place, image=str(place / "photo.png"), box=None, mask=str(place / "half.png")), 16
    )
    assert pixels.shape == (3, 16, 16) and seen == "60x40 px cut to 16x16"
    assert known[:, :8].all() and not known[:, 8:].any()
    run_edit(
        request(place, image=str(place / "photo.png"), box=None, mask=str(place / "half.png"), label=None),
    )


def test_official_files_give_the_same_picture(place):
    run_edit(request(place))
    expected = cells(place / "out.png", rows=1, columns=4)
    networks = {**NETWORKS, "vae": str(place / "vae.pth"), "var": str(place / "var.pth")}
    with pytest.raises(ConfigError, match="a tokenizer|lvl_1L|is missing|expected"):
        open_networks(None, vae=networks["var"], var=networks["vae"])
    run_edit(request(place, checkpoint=None, networks=networks, label="1"))
    assert (np.array(cells(place / "out.png", rows=1, columns=4)) == np.array(expected)).all()


def test_init_from_loads_every_kind_of_source(place, tmp_path):
    vqvae = load_tokenizer(place / "tokenizer")
    config = Config.model_validate({"model": MODEL, "tokenizer": {"vocab_size": 32, "code_dim": 8, "channels": 16}})
    ours, fresh = restore(place / "ours")[0].state_dict(), new_var(config, vqvae, 5, seed=9).state_dict()
    for source in (place / "ours", place / "ours" / "000000000064", place / "var.pth"):
        named = config.with_values({"training.init_from": str(source)})
        assert all(
            torch.equal(value, ours[key]) for key, value in new_var(named, vqvae, 3, seed=9).state_dict().items()
        )
        other = new_var(named, vqvae, 5, seed=9).state_dict()
        assert torch.equal(other["class_emb.weight"], fresh["class_emb.weight"])
        assert all(torch.equal(value, ours[key]) for key, value in other.items() if key != "class_emb.weight")
        assert not torch.equal(new_var(named, vqvae, 3, seed=9, empty=True).head.weight, ours["head.weight"])
    wider = config.with_values({"model.width": 64, "training.init_from": str(place / "ours")})
    with pytest.raises(
        ConfigError, match=r"training.init_from: .*ours: pos_start has shape \(1, 1, 32\), expected \(1, 1, 64\)"
    ):
        new_var(wider, vqvae, 3, seed=9)
    with pytest.raises(ConfigError, match="training.init_from: .*no such file"):
        new_var(config.with_values({"training.init_from": str(tmp_path / "none.pth")}), vqvae, 3, seed=9)
    with pytest.raises(ConfigError, match="is not a checkpoint"):
        new_var(config.with_values({"training.init_from": str(tmp_path)}), vqvae, 3, seed=9)


def test_another_tokenizer_is_refused(place, tmp_path):
    save_tokenizer(tmp_path / "other", VQVAE(TokenizerConfig(**{**TOKENIZER, "vocab_size": 48})))
    with pytest.raises(ConfigError, match="other is not the tokenizer that this checkpoint was trained with"):
        restore(place / "ours", tokenizer=str(tmp_path / "other"))


def test_titles_are_wrapped_to_the_picture(tmp_path):
    image, known = torch.rand(3, 16, 16), torch.ones(16, 16, dtype=torch.bool)
    heights = []
    for title in ("short", "long " * 60):
        path = save_picture(
            tmp_path / "x.png", image, known, [Row("checkpoint", "here", image[None])], first_seed=0, title=title
        )
        picture = np.asarray(Image.open(path))
        heights.append(picture.shape[0])
        assert (picture[:, -4:] == 255).all()
    assert heights[1] > heights[0]


NETWORKS = {"vae": None, "var": None, "tokenizer": None, "device": "cpu"}
CASES = {
    "another task": ({"task": "outpant"}, "did you mean 'outpaint'"),
    "neither mask nor box": ({"box": None}, "either --mask or --box"),
    "relabel to nothing": ({"task": "relabel", "label": None}, "relabel needs --label"),
    "unknown label": (
        {"label": "dgo"},
        "--label: label 'dgo' is not one of the 3 classes: 0 = cat, .*did you mean 'dog'",
    ),
    "label out of range": ({"label": "3"}, "--label: label '3' is not one of the 3 classes"),
    "box that is none": ({"box": "1,2,3"}, "'1,2,3' is not x0,y0,x1,y1"),
    "box beyond the image": ({"box": "4,4,17,12"}, "^--box: '4,4,17,12' must have 0 <= x0 < x1 <= 16"),
    "hides everything": ({"box": "0,0,16,16"}, "^--box 0,0,16,16: .* hides everything"),
    "hides nothing": ({"task": "outpaint", "box": "0,0,16,16"}, "^--box .* hides nothing"),
    "no token known": ({"task": "outpaint", "box": "1,1,4,4"}, "^--box .* no whole cell"),
    "no image": ({"image": "nowhere.png"}, "nowhere.png: there is no such file"),
    "CFG below 0": ({"sampling": {"cfg_scale": -1.0, "cfg_ramp": 1.0}}, "^--cfg-scale: -1.0"),
    "CFG that is none": ({"sampling": {"cfg_scale": float("nan"), "cfg_ramp": 1.0}}, "^--cfg-scale: nan"),
    "ramp below 0": ({"sampling": {"cfg_scale": 1.0, "cfg_ramp": -0.5}}, "^--cfg-ramp: -0.5"),
    "top_k above V": ({"sampling": {"cfg_scale": 1.0, "cfg_ramp": 1.0, "top_k": 33}}, "^--top-k: 33 is not in 0 … 32"),
    "no such device": ({"networks": {**NETWORKS, "device": "gpu"}}, "--device: 'gpu' is not a device"),
    "one official file": ({"networks": {**NETWORKS, "vae": "x.pth"}}, "come in pairs"),
    "out in a file": ({"out": "/dev/null/x.png"}, "cannot be written"),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_requests_are_refused(place, log_lines, name):
    changes, message = CASES[name]
    with pytest.raises(ConfigError, match=message):
        run_edit(request(place, **changes))
    assert not log_lines or name == "out in a file"  # before anything is sampled


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"box": "9,4,4,12"}, "^--box: '9,4,4,12' must have 0 <= x0 < x1 and"),
        ({"box": "-1,4,4,12"}, "^--box: '-1,"),
        ({"box": None, "mask": "nowhere.png"}, "nowhere.png: there is no such file"),
        ({"image": "nowhere.png"}, "nowhere.png"),
    ],
)
def test_bad_input_is_refused_before_loading(place, changes, message):
    with pytest.raises(ConfigError, match=message):
        run_edit(request(place, checkpoint="no-checkpoint", **changes))


def test_bad_files_are_refused(place):
    Image.new("L", (16, 12)).save(place / "low.png")
    with pytest.raises(
        ConfigError, match="low.png: mask of 16x12 px for an image of 16x16 px; it must have the image's size"
    ):
        read_request(request(place, box=None, mask=str(place / "low.png")), 16)
    whole = (place / "photo.png").read_bytes()
    (place / "torn.png").write_bytes(whole[: len(whole) // 2])
    for image in ("torn.png", "vae.pth"):
        with pytest.raises(ConfigError, match=f"{image}: is not an image that can be read"):
            read_request(request(place, image=str(place / image)), 16)
    config = Config.model_validate(
        {"model": MODEL, "data": {"image_size": 8}, "tokenizer": {**TOKENIZER, "channel_multipliers": (1, 2)}}
    )
    vqvae = VQVAE(TokenizerConfig(**{**TOKENIZER, "channel_multipliers": (1, 2)}))
    save_tokenizer(place / "other", vqvae)
    save_checkpoint(
        place / "eight" / "000000000064",
        var_state=new_var(config, vqvae, 3, seed=0).state_dict(),
        config=config.model_dump(mode="json"),
        tokenizer={"path": str(place / "other")},
        training_state={"images": 64},
    )
    with pytest.raises(ConfigError, match="--baseline: makes images of 8 px, the checkpoint of 16 px"):
        run_edit(request(place, baseline=str(place / "eight"), label=None))


def test_command_line_edits_and_generates(place, cli):
    ours, small = place / "ours", place / "small.png"
    done = cli(
        "edit", "relabel", ours, small, "--box", "4,4,12,12", "--label", "2", "--count", "2", "--out", place / "a.png"
    )
    assert done.returncode == 0, done.stderr
    assert "completions: 2 of 2" in done.stdout and f"{place / 'a.png'}: 2 completions" in done.stdout
    assert len(cells(place / "a.png", rows=1, columns=4)[0]) == 4
    done = cli(
        "generate",
        "--vae",
        place / "vae.pth",
        "--var",
        place / "var.pth",
        "--label",
        "1",
        "--count",
        "3",
        "--cfg-ramp",
        "0",
        "--out",
        place / "b.png",
    )
    assert done.returncode == 0, done.stderr
    assert "images: 3 of 3" in done.stdout
    assert "CFG 1.5 (0 = off), ramp 0, checkpoint" in done.stdout and "official files" in done.stdout
    done = cli("edit", "inpaint", small, "--box", "4,4,12,12", "--out", place / "c.png")
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "expected CHECKPOINT IMAGE" in done.stderr


def test_initial_weights_are_copied(place):
    """Training one network does not change another that started from the same file."""
    vqvae = load_tokenizer(place / "tokenizer")
    config = Config.model_validate({"model": MODEL, "training": {"init_from": str(place / "var.pth")}})
    first, second = (new_var(config, vqvae, 3, seed=0) for _ in range(2))
    with torch.no_grad():
        first.head.weight.zero_()
    assert second.head.weight.any() and isinstance(second, VAR) and second.head.weight.requires_grad
