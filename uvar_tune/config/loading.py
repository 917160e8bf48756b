"""Reading a configuration: YAML without aliases or duplicate keys, overrides, and errors that fit one line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from uvar_tune.config.messages import complaint
from uvar_tune.config.schema import Config, dotted_names
from uvar_tune.config.space import check_space
from uvar_tune.errors import ConfigError, nearest
from uvar_tune.io.safe_load import parse_yaml, read_text

_COMMAND_LINE = "command line"
_MAY_BE_EMPTY = set(Config.model_fields) - {"verdict", "provenance"}  # a heading with nothing below it


def read_config(
    path: str | Path, overrides: list[str] = (), *, name: str | None = None, trials: int | None = None
) -> Config:
    """The validated configuration of a space file or export, with ``key=value`` overrides and the options of a door applied.

    Raises:
        ConfigError: a missing or unreadable file, YAML that does not parse, an unknown key (with the nearest), a value
            out of range, a space that the schema does not allow somewhere in its range, an override of what it searches.
    """
    written = parse_yaml(read_text(path), str(path))
    _require_mapping(written, str(path))
    tree, told = written, {}
    for key, value, by in [
        *map(_override, overrides),
        ("study.trials", trials, "--trials"),
        ("study.name", name, "--study"),
    ]:
        if by == _COMMAND_LINE or value is not None:
            tree = _with(tree, key, value, by)
            if key in told:
                raise ConfigError(f"{key} stands twice", where=by)
            told[key] = by
    try:
        config = validate(tree, str(path))
        _check_told(config, told)
    except ConfigError as error:
        where = _blamed(error.message, told, written, str(path))
        raise ConfigError(error.message, where=where, nearest=error.nearest) from None
    return config


def validate(tree: Any, where: str) -> Config:
    """Config from plain data; every complaint becomes one ConfigError with the file and the key."""
    _require_mapping(tree, where)
    _require_texts(tree, "", where)
    try:
        config = Config.model_validate(
            {key: ({} if value is None and key in _MAY_BE_EMPTY else value) for key, value in tree.items()}
        )
        check_space(config)
    except ValidationError as error:
        raise complaint(error, where) from None
    except ConfigError as error:
        raise ConfigError(error.message, where=where, nearest=error.nearest) from None
    return config


def _require_mapping(tree: Any, where: str) -> None:
    if not isinstance(tree, dict):
        raise ConfigError("a configuration is a mapping of sections", where=where)


def _require_texts(value: Any, key: str, where: str) -> None:
    """ConfigError for a text with a NUL or half a character, which no path and no file can hold."""
    if isinstance(value, (dict, list, tuple)):
        for part, inner in value.items() if isinstance(value, dict) else enumerate(value):
            _require_texts(inner, f"{key}.{part}".lstrip("."), where)
    elif isinstance(value, str) and ("\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value)):
        raise ConfigError(f"{key[:80]} {value!r:.80} holds a character that no text may hold", where=where)


def _check_told(config: Config, told: dict[str, str]) -> None:
    """ConfigError for a setting of the command line that the space has instead."""
    for name in told:
        entry = config.space.get(name)
        if entry is None:
            continue
        value, fixed = config.get(name), entry.choices[0] if entry.role == "fixed" else None
        if entry.role != "fixed":
            raise ConfigError(
                f"{name} {value!r}: space.{name} searches it; change its range or baseline there, or take it out of "
                "the space"
            )
        if value != fixed:
            raise ConfigError(
                f"{name} {value!r}: space.{name} fixes it at {fixed!r}; change it there", nearest=str(fixed)
            )


def _blamed(message: str, told: dict[str, str], written: dict[str, Any], file: str) -> str:
    """Where the mistake was made: by what the message names, else in the file where that is wrong by itself."""
    for name, by in told.items():
        if re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", message):
            return by
    if not told:
        return file
    try:
        validate(written, file)
    except ConfigError:
        return file
    return _COMMAND_LINE


def _override(text: str) -> tuple[str, Any, str]:
    """(dotted name, value, where it stands) of a ``key=value``."""
    name, equals, value = text.partition("=")
    name = name.strip()
    if not equals or "." not in name:
        raise ConfigError(f"{text!r} is not of the form section.key=value", where=_COMMAND_LINE)
    if name not in dotted_names():
        raise ConfigError(f"unknown setting {name!r}", where=_COMMAND_LINE, nearest=nearest(name, dotted_names()))
    return name, parse_yaml(value, f"{_COMMAND_LINE}, {name}"), _COMMAND_LINE


def _with(tree: dict[str, Any], name: str, value: Any, by: str) -> dict[str, Any]:
    section, key = name.split(".", 1)
    held = tree.get(section)
    if not isinstance(held, (dict, type(None))):
        raise ConfigError(f"section {section!r} is not a mapping", where=by)
    return {**tree, section: {**(held or {}), key: value}}
