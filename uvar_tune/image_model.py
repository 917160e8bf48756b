"""A checkpoint as a model that MLflow loads: the artifact's copy of this package calls it.

The artifact's data are `CHECKPOINT`, a checkpoint without its training state, `TOKENIZER`, a tokenizer's directory or
official file, and `SAMPLING`, the settings that the trial selected. No other file is needed.

Legend: N images, S image size.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from uvar_tune.errors import ConfigError
from uvar_tune.io.safe_load import read_json
from uvar_tune.pipeline import VARPipeline
from uvar_tune.tracking.model_files import CHECKPOINT, SAMPLING, TOKENIZER

if TYPE_CHECKING:
    import pandas

_COLUMNS = ("label", "seed")


class ImageModel:
    """Draws one image for each row of a table.

    Args:
        pipeline: of the checkpoint.
        sampling: settings of the sampler, by name.
    """

    def __init__(self, pipeline: VARPipeline, sampling: Mapping[str, float]):
        self.pipeline, self._sampling = pipeline, dict(sampling)

    def predict(self, rows: pandas.DataFrame, params: Mapping[str, Any] | None = None) -> np.ndarray:
        """Draw an image for each row.

        Args:
            rows: the columns label (number or name of a class) and, optionally, seed (by default the row's number).
            params: cfg_scale, cfg_ramp, top_k, top_p, temperature; by default those that the trial selected.

        Returns:
            uint8 (N, S, S, 3).

        Raises:
            ConfigError: a column is missing or unknown, or a label, seed or setting is out of range.
        """
        names = list(getattr(rows, "columns", ()))
        if "label" not in names or set(names) - set(_COLUMNS):
            raise ConfigError(f"a table with the columns label and seed is expected, got {names}", where="label")
        labels = [label if isinstance(label, str) else int(label) for label in rows["label"]]
        seeds = [int(seed) for seed in rows["seed"]] if "seed" in names else list(range(len(labels)))
        images_N3SS = self.pipeline(labels, seeds=seeds, **{**self._sampling, **(params or {})})
        return images_N3SS.permute(0, 2, 3, 1).numpy()


def _load_pyfunc(path: str) -> ImageModel:
    """The model whose data are in ``path``; called by MLflow."""
    data = Path(path)
    tokenizer = next(iter(sorted(data.glob(f"{TOKENIZER}*"))), data / TOKENIZER)
    pipeline = VARPipeline.from_checkpoint(data / CHECKPOINT, tokenizer=tokenizer)
    return ImageModel(pipeline, read_json(data / SAMPLING))
