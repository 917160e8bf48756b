"""Folders of test images without splits: CLASS/IMAGE (ImageNet-O) and KIND/SEVERITY/CLASS/IMAGE (ImageNet-C).

Images are read as validation images are (`uvar_tune.data`): shorter side to 1.125 times the size, then a centre crop.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from uvar_tune.config.schema import DataConfig
from uvar_tune.data import ImageSet
from uvar_tune.data.classes import select_classes
from uvar_tune.data.corruptions import SEVERITIES
from uvar_tune.data.folder import read_class_folders
from uvar_tune.data.listing import class_folders as list_class_folders
from uvar_tune.errors import ConfigError
from uvar_tune.evaluation.robustness import Corrupted


def class_folders(
    path: str | Path, *, image_size: int, classes: Sequence[str] | None = None, on_corrupt: str = "refuse"
) -> ImageSet:
    """The images of ``path``/CLASS/IMAGE.

    Args:
        path: the folder.
        image_size: side in pixels.
        classes: names to keep, labels in this order; None keeps all, sorted by name.
        on_corrupt: `refuse` unreadable files, or `skip` them with a warning.

    Raises:
        ConfigError: no such folder, an empty one, a class that is missing or has no images, unreadable images.
    """
    folder = Path(path)
    names = list_class_folders(folder) if folder.is_dir() else []
    if not names:
        raise ConfigError(
            "holds no folder CLASS with images" if folder.is_dir() else "is not a directory", where=str(folder)
        )
    config = DataConfig(name="folder", path=str(folder), image_size=image_size, on_corrupt=on_corrupt)
    class_names = select_classes(names, classes, str(folder))
    return read_class_folders(
        folder, class_names, config, random_crops=False, recipe=f"centre/exif/{image_size}", where=str(folder)
    )


def imagenet_c(
    path: str | Path, *, image_size: int, classes: Sequence[str], on_corrupt: str = "refuse"
) -> list[Corrupted]:
    """All sets of ``path``/KIND/SEVERITY/CLASS/IMAGE.

    Args:
        path: the folder.
        image_size: side in pixels.
        classes: names in the order of the labels.
        on_corrupt: `refuse` unreadable files, or `skip` them with a warning.

    Returns:
        Severities 1 … 5 of each kind.

    Raises:
        ConfigError: no kinds, or a severity or a class is missing.
    """
    folder = Path(path)
    kinds = sorted(entry for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
    if not kinds:
        raise ConfigError(
            "holds no folders KIND/SEVERITY/CLASS" if folder.is_dir() else "is not a directory", where=str(folder)
        )
    sets = []
    for kind in kinds:
        for severity in SEVERITIES:
            images = class_folders(kind / str(severity), image_size=image_size, classes=classes, on_corrupt=on_corrupt)
            sets.append(Corrupted(kind.name, severity, images.images, images.labels_N))
    return sets
