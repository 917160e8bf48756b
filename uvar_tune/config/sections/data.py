"""Section ``data``: the images."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from uvar_tune.config.sections.base import IMAGE_FORMATS, Section, Size


class DataConfig(Section):
    """The images."""

    name: Literal["digits", "folder"] = "digits"
    """The built-in handwritten digits, or a folder of images."""
    path: str | None = None
    """Folder laid out as train|val/CLASS/IMAGE."""
    image_size: Size = 16
    """Side of an image in pixels."""
    classes: tuple[str, ...] | None = None
    """Names of the classes to use (default: all)."""
    on_corrupt: Literal["refuse", "skip"] = "refuse"
    """Whether an unreadable image ends the command or is left out."""
    nested: bool = False
    """Whether the subfolders of a class are read too."""
    formats: tuple[Literal[IMAGE_FORMATS], ...] = IMAGE_FORMATS[:9]
    """File extensions to read; none: files without an extension."""

    @model_validator(mode="after")
    def _folder_has_a_path(self):
        if self.name == "folder" and not self.path:
            raise ValueError("data.name 'folder' needs data.path, a folder laid out as train|val/CLASS/IMAGE")
        return self
