"""Folders of test images without a split of their own: CLASS/IMAGE (ImageNet-O) and KIND/SEVERITY/CLASS/IMAGE (ImageNet-C).

Images are read as the data room reads validation images: shorter side to 1.125 times the size, centre crop.
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
        classes: names to keep, labels in this order; None keeps all, sorted by name.
        on_corrupt: files that cannot be read: `refuse`, or `skip` them with a warning.

    Raises ConfigError: no such folder, an empty one, a class that is missing or without images, unreadable images.
    """
    place = Path(path)
    names = list_class_folders(place) if place.is_dir() else []
    if not names:
        raise ConfigError(
            "holds no folder CLASS with images" if place.is_dir() else "is no directory", where=str(place)
        )
    config = DataConfig(name="folder", path=str(place), image_size=image_size, on_corrupt=on_corrupt)
    class_names = select_classes(names, classes, str(place))
    return read_class_folders(
        place, class_names, config, random_crops=False, recipe=f"centre/exif/{image_size}", where=str(place)
    )


def imagenet_c(
    path: str | Path, *, image_size: int, classes: Sequence[str], on_corrupt: str = "refuse"
) -> list[Corrupted]:
    """All sets of ``path``/KIND/SEVERITY/CLASS/IMAGE, severities 1 … 5 of every kind; labels in the order of ``classes``.

    Raises ConfigError: no kinds, a severity or a class missing.
    """
    place = Path(path)
    kinds = sorted(entry for entry in place.iterdir() if entry.is_dir()) if place.is_dir() else []
    if not kinds:
        raise ConfigError(
            "holds no folders KIND/SEVERITY/CLASS" if place.is_dir() else "is no directory", where=str(place)
        )
    sets = []
    for kind in kinds:
        for severity in SEVERITIES:
            images = class_folders(kind / str(severity), image_size=image_size, classes=classes, on_corrupt=on_corrupt)
            sets.append(Corrupted(kind.name, severity, images.images, images.labels_N))
    return sets
