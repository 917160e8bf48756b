"""Validation errors of a configuration as one line: the key, the value, the rule, the nearest valid choice."""

from __future__ import annotations

from pydantic import ValidationError

from uvar_tune.config.schema import Config, Constraint, Section
from uvar_tune.config.space_entry import SpaceEntry
from uvar_tune.errors import ConfigError, nearest

_MAX_VALUE_LENGTH = 80  # characters of a value that a message shows


def config_error(error: ValidationError, where: str | None = None, section: type[Section] = Config) -> ConfigError:
    """The first problem that a validation found, as a ConfigError.

    Args:
        error: raised by pydantic.
        where: file or argument that holds the configuration.
        section: what was validated.
    """
    first = error.errors(include_url=False)[0]
    keys = [_printable_key(part) for part in first["loc"]]
    dotted, message = ".".join(keys), first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return ConfigError(f"unknown key {dotted!r}", where=where, nearest=nearest(dotted, _valid_keys(keys, section)))
    value = first.get("input")
    shown = f" {_short(value)}" if isinstance(value, (str, int, float, bool)) else " (nothing)" if value is None else ""
    choice = None
    if first["type"] == "literal_error":
        choices = first["ctx"]["expected"].replace(" or ", ", ").split(",")
        choice = nearest(value, [part.strip(" '") for part in choices])
    message = _rule(first["type"], value) or (
        message[0].lower() + message[1:] if first["type"] != "value_error" else message
    )
    return ConfigError(f"{dotted}{shown}: {message}" if keys else message, where=where, nearest=choice)


def _rule(kind: str, value: object) -> str | None:
    """The rule in terms of YAML, if pydantic's message would not help."""
    if kind == "string_type" and isinstance(value, (int, float)):
        return "a text is expected; put it into quotes"
    if kind in ("tuple_type", "list_type"):
        example = value[:_MAX_VALUE_LENGTH] if isinstance(value, str) and value else "0, 1"
        return f"a list is expected, such as [{example}]"
    return None


def _printable_key(part: object) -> str:
    text = str(part)
    return text if text.isprintable() and len(text) <= _MAX_VALUE_LENGTH else _short(text)


def _short(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python does not print an integer of thousands of digits
        text = "(a number of thousands of digits)"
    return text if len(text) <= _MAX_VALUE_LENGTH else f"{text[:_MAX_VALUE_LENGTH]}…"


def _valid_keys(keys: list[str], section: type[Section]) -> list[str]:
    """The dotted names that are valid in ``section`` where the last of ``keys`` is not."""
    if len(keys) == 1:
        return list(section.model_fields)
    if keys[0] == "space":
        fields = SpaceEntry.model_fields
    elif keys[:2] == ["study", "constraints"]:
        fields = Constraint.model_fields
    else:
        kind = Config.model_fields[keys[0]].annotation
        fields = kind.model_fields if isinstance(kind, type) and issubclass(kind, Section) else {}
    return [".".join([*keys[:-1], field]) for field in fields]
