"""A trial's network as an MLflow model that needs no other file: weights, tokenizer and the code of this package."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import uvar_tune
from uvar_tune.config.loading import validate
from uvar_tune.io.safe_load import read_json, read_yaml

CHECKPOINT, TOKENIZER, SAMPLING = "checkpoint", "tokenizer", "sampling.json"
_LOADER = "uvar_tune.image_model"
_TRAINING_STATE = "training.pt"  # of no use without training, and the largest file
_REQUIREMENTS = ("mlflow", "torch", "numpy", "pandas", "pillow", "safetensors", "pydantic", "pyyaml")
_SETTINGS = {"cfg_scale": "double", "cfg_ramp": "double", "top_k": "long", "top_p": "double", "temperature": "double"}


def model_name(study: str, number: int) -> str:
    """Name of a trial's model; MLflow allows no dot in it."""
    return f"{study}-t{number:03d}".replace(".", "-")


def selected_sampling(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the sampler among the parameters of a trial, by name without section."""
    return {name: parameters[f"inference.{name}"] for name in _SETTINGS if f"inference.{name}" in parameters}


def model_tags(checkpoint: Path) -> dict[str, str]:
    """The tags that identify a checkpoint among the models of a run.

    Raises:
        OSError, ConfigError: it is not there or not readable.
    """
    manifest = read_json(checkpoint / "manifest.json")
    return {"uvar.images": str(manifest.get("images")), "uvar.checkpoint": checkpoint.name}


def write_model(
    target: Path, checkpoint: Path, sampling: Mapping[str, float], *, model_id: str, run_id: str, scratch: Path
) -> None:
    """Write the model.

    Args:
        target: a directory that does not exist yet.
        checkpoint: the checkpoint; its tokenizer is where it says.
        sampling: settings of the sampler that the trial selected, by name.
        model_id: of the logged model.
        run_id: of the trial's run.
        scratch: an empty directory of the same file system.

    Raises:
        OSError: a file is missing or cannot be written.
        ConfigError: the checkpoint's configuration is invalid.
    """
    import pandas
    from mlflow import pyfunc
    from mlflow.models import Model

    config = validate(read_yaml(checkpoint / "config.yaml"), str(checkpoint / "config.yaml"))
    sampling = {name: getattr(config.inference, name) for name in _SETTINGS} | dict(sampling)
    data, code = scratch / "data", scratch / "code" / "uvar_tune"
    tokenizer = Path(read_json(checkpoint / "tokenizer.json")["path"])
    _link_tree(checkpoint, data / CHECKPOINT, without=_TRAINING_STATE)
    _link_tree(tokenizer, data / f"{TOKENIZER}{'' if tokenizer.is_dir() else tokenizer.suffix}")
    (data / SAMPLING).write_text(json.dumps(sampling), encoding="utf-8")
    package = Path(uvar_tune.__file__).parent
    shutil.copytree(package, code, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    pyfunc.save_model(
        target,
        loader_module=_LOADER,
        data_path=data,
        code_paths=[str(code)],
        mlflow_model=Model(model_id=model_id, run_id=run_id),
        pip_requirements=_requirements(),
        signature=_signature(config.data.image_size, sampling),
        input_example=pandas.DataFrame({"label": [0, 1], "seed": [0, 0]}),
    )


def _link_tree(source: Path, target: Path, without: str | None = None) -> None:
    """Hard links to the files of a directory, or to a file; copies if links are impossible."""
    if source.is_file():
        return _link(source, target)
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.is_file() and path.name != without:
            _link(path, target / path.name)


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _requirements() -> list[str]:
    """The packages that the model imports, with the versions of this environment (without their local parts)."""
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in _REQUIREMENTS]


def _signature(image_size: int, sampling: Mapping[str, float]) -> Any:
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec
    from mlflow.types.schema import AnyType

    return ModelSignature(
        inputs=Schema([ColSpec(AnyType(), "label"), ColSpec("long", "seed", required=False)]),
        outputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, image_size, image_size, 3))]),
        params=ParamSchema([ParamSpec(name, kind, sampling[name]) for name, kind in _SETTINGS.items()]),
    )
