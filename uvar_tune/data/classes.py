"""Class names and labels: label i is the i-th class name."""

from __future__ import annotations

from collections.abc import Sequence

from uvar_tune.errors import ConfigError, nearest

_NAMED = 12  # classes in a description


def select_classes(names: Sequence[str], classes: Sequence[str] | None, where: str) -> list[str]:
    """The classes to keep, in the order of their labels.

    Args:
        names: all classes.
        classes: those to keep; None keeps all.
        where: the place that has ``names``, for messages.

    Raises:
        ConfigError: a class that does not exist or is named twice, or no class.
    """
    if classes is None:
        return list(names)
    selected = [str(name) for name in classes]
    for name in selected:
        if name not in names:
            raise ConfigError(f"class {name!r} is not in {where}", where="data.classes", nearest=nearest(name, names))
    if not selected or len(set(selected)) < len(selected):
        raise ConfigError(f"{selected} must name at least one class, and each once", where="data.classes")
    return selected


def describe_classes(class_names: Sequence[str]) -> str:
    """The mapping label = name, e.g. for a log."""
    pairs = ", ".join(f"{label} = {name}" for label, name in enumerate(class_names[:_NAMED]))
    return f"{len(class_names):,} classes: {pairs}{', …' if len(class_names) > _NAMED else ''}"


def resolve_label(text: str, class_names: Sequence[str], num_classes: int, *, where: str = "--label") -> int:
    """The label that a user means: the name of a class, else its number.

    If a class has a number as its name, numbers are names only: of the classes 1, 10, 2 the text "1" is the first.

    Args:
        text: as the user wrote it.
        class_names: in the order of the labels; empty if unknown.
        num_classes: labels are 0 … num_classes-1.
        where: the option, for messages.

    Raises:
        ConfigError: no such class; with the nearest name or number.
    """
    names = list(class_names)
    if text in names:
        return names.index(text)
    is_number = text.isdecimal() and text.isascii()
    if is_number and not any(name.isdecimal() for name in names) and int(text) < num_classes:
        return int(text)
    numbers = f"0 … {num_classes - 1}"
    if names:
        raise ConfigError(
            f"label {text!r} is not one of the {describe_classes(names)}", where=where, nearest=nearest(text, names)
        )
    closest = str(num_classes - 1) if is_number else None
    raise ConfigError(f"label {text!r} is not one of {numbers}; class names are unknown", where=where, nearest=closest)
