"""The public API: its names, lazy import, and behaviour as a library."""

from __future__ import annotations

import logging
import re
import subprocess
import sys

import pytest
import torch

import uvar_tune
from tests.helpers.commands import REPOSITORY, environment
from tests.helpers.small_checkpoint import write_checkpoint
from uvar_tune.errors import ConfigError
from uvar_tune.model import save_official


def test_changelog_lists_the_public_names():
    text = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^- `(\w+)`: .+$", text, re.MULTILINE) == uvar_tune.__all__


def test_public_names_exist_and_are_documented():
    for name in uvar_tune.__all__:
        assert getattr(uvar_tune, name).__doc__, name
    assert set(uvar_tune.__all__) <= set(dir(uvar_tune))
    with pytest.raises(AttributeError, match="no attribute 'run_stduy'"):
        uvar_tune.run_stduy  # noqa: B018


def test_import_is_fast_and_light():
    code = (
        "import sys, time; start = time.process_time(); import uvar_tune\n"
        "heavy = {'torch', 'ray', 'optuna', 'mlflow', 'numpy', 'pydantic', 'yaml', 'typer'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert time.process_time() - start < 0.2\n"
        "from uvar_tune import load_config, train; assert callable(train)\n"
        "load_config({}); assert 'torch' not in sys.modules and 'ray' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=environment())


def test_load_config_takes_files_and_mappings(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text("study: {name: a, trials: 4}", encoding="utf-8")
    tree = {"study": {"name": "a", "trials": 4}}
    assert uvar_tune.load_config(path) == uvar_tune.load_config(tree)
    assert uvar_tune.load_config(tree, ["study.trials=5"]).study.trials == 5
    with pytest.raises(ConfigError, match="configuration: unknown key 'studdy'; did you mean 'study'"):
        uvar_tune.load_config({"studdy": {}})


def test_refusals_raise_and_leave_logging_alone(tmp_path, capsys):
    import uvar_tune.commands.evaluate  # libraries configure their own loggers on import
    import uvar_tune.search.load  # noqa: F401

    loggers = [logging.getLogger(name) for name in (None, "ray", "optuna", "mlflow", "uvar_tune")]
    before = [(logger.level, list(logger.handlers), logger.propagate) for logger in loggers]
    with pytest.raises(ConfigError, match="no study 'nothing'"):
        uvar_tune.load_study("nothing", root=tmp_path)
    with pytest.raises(ConfigError, match="unknown phase .explor."):
        uvar_tune.run_study(uvar_tune.load_config({"run": {"root": str(tmp_path)}}), phase="explor")
    with pytest.raises(ConfigError, match="is a space file"):
        uvar_tune.train(REPOSITORY / "search_spaces" / "digits.yaml")
    with pytest.raises(ConfigError, match="unknown table 'table9'"):
        uvar_tune.evaluate(tmp_path, tables="table9")
    assert [(logger.level, list(logger.handlers), logger.propagate) for logger in loggers] == before
    captured = capsys.readouterr()
    assert not captured.out + captured.err


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A small untrained VAR, loaded from a checkpoint."""
    place = tmp_path_factory.mktemp("pipeline")
    write_checkpoint(place / "trial", place / "tokenizer")
    return uvar_tune.VARPipeline.from_checkpoint(place / "trial", device="cpu")


def test_pipeline_draws_images_by_label_and_seed(pipeline):
    assert (pipeline.num_classes, pipeline.image_size, pipeline.settings.cfg_scale) == (4, 8, 2.5)
    images = pipeline([2, 0], count=2, seeds=5)
    assert images.dtype == torch.uint8 and images.shape == (4, 3, 8, 8)
    assert torch.equal(pipeline(0, seeds=[8]), images[3:])
    assert not torch.equal(pipeline(0, seeds=[9]), images[3:])
    assert len(pipeline()) == 4 and torch.equal(pipeline("cat", seeds=[8]), images[3:])
    assert torch.equal(pipeline(2, seeds=5, cfg_scale=2.5), images[:1])
    (picture,) = pipeline(2, seeds=5, output="pil")
    assert picture.size == (8, 8) and picture.getpixel((3, 1)) == tuple(images[0, :, 1, 3].tolist())
    for arguments, message in (({"labels": 5}, "label"), ({"seeds": [1]}, "seed"), ({"output": "png"}, "output")):
        with pytest.raises(ConfigError, match=message):
            pipeline(**{"labels": [0, 1], **arguments})
    with pytest.raises(TypeError, match="unknown sampling setting 'top_q'"):
        pipeline(0, top_q=1)


def test_pipeline_inpaints_boxes_and_masks(pipeline):
    image = pipeline(1, output="pil")[0].resize((40, 30))
    by_box = pipeline.inpaint(image, box=(0, 0, 4, 4), label=1, count=2)
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:4, :4] = True
    by_mask = pipeline.inpaint(image, mask=mask, label=1, count=2)
    assert torch.equal(by_box, by_mask) and by_box.shape == (2, 3, 8, 8)
    assert torch.equal(by_box[0, :, 4:], by_box[1, :, 4:])  # the known part
    with pytest.raises(ConfigError, match="either mask or box"):
        pipeline.inpaint(image)


def test_pipeline_of_official_files_is_the_same(pipeline, tmp_path):
    save_official(pipeline.vqvae, pipeline.var, vae_path=tmp_path / "vae.pth", var_path=tmp_path / "var.pth")
    official = uvar_tune.VARPipeline.from_official(tmp_path / "vae.pth", tmp_path / "var.pth", device="cpu")
    assert torch.equal(official(3, cfg_scale=1.0), pipeline(3, cfg_scale=1.0))
