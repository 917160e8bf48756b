"""What is wrong with a configuration, in one line: the key, the value, the rule, the nearest valid choice."""

from __future__ import annotations

from pydantic import ValidationError

from uvar_tune.config.schema import Config, Constraint, Section
from uvar_tune.config.space_entry import SpaceEntry
from uvar_tune.errors import ConfigError, nearest

_LONGEST = 80  # characters of a value that are shown


def complaint(error: ValidationError, where: str | None = None) -> ConfigError:
    """The first complaint of a validation as a ConfigError."""
    first = error.errors(include_url=False)[0]
    place = [_key(part) for part in first["loc"]]
    dotted, message = ".".join(place), first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return ConfigError(f"unknown key {dotted!r}", where=where, nearest=nearest(dotted, _siblings(place)))
    value = first.get("input")
    shown = f" {_short(value)}" if isinstance(value, (str, int, float, bool)) else " (nothing)" if value is None else ""
    near = None
    if first["type"] == "literal_error":
        near = nearest(value, [part.strip(" '") for part in first["ctx"]["expected"].replace(" or ", ", ").split(",")])
    message = _wanted(first["type"], value) or (
        message[0].lower() + message[1:] if first["type"] != "value_error" else message
    )
    return ConfigError(f"{dotted}{shown}: {message}" if place else message, where=where, nearest=near)


def _wanted(kind: str, value: object) -> str | None:
    """What stands there instead, in the words of YAML, where pydantic's would not help."""
    if kind == "string_type" and isinstance(value, (int, float)):
        return "a text is expected; put it into quotes"
    if kind in ("tuple_type", "list_type"):
        return f"a list is expected, such as [{value[:_LONGEST] if isinstance(value, str) and value else '0, 1'}]"
    return None


def _key(part: object) -> str:
    """A key as it stands in a message of one line."""
    text = str(part)
    return text if text.isprintable() and len(text) <= _LONGEST else _short(text)


def _short(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python writes no whole number of thousands of digits
        text = "(a number of thousands of digits)"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _siblings(place: list[str]) -> list[str]:
    """The valid keys at ``place``, dotted."""
    if len(place) == 1:
        return list(Config.model_fields)
    if place[0] == "space":
        known = SpaceEntry.model_fields
    elif place[:2] == ["study", "constraints"]:
        known = Constraint.model_fields
    else:
        kind = Config.model_fields[place[0]].annotation
        known = kind.model_fields if isinstance(kind, type) and issubclass(kind, Section) else {}
    return [".".join([*place[:-1], key]) for key in known]
