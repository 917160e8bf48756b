"""Loading of a configuration: YAML file or mapping, overrides, absolute paths, validation.

Every error is a `ConfigError` of one line: the value, the rule, where it is, the nearest valid choice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from uvar_tune.config.messages import config_error
from uvar_tune.config.paths import absolute_paths
from uvar_tune.config.schema import Config, dotted_names
from uvar_tune.config.space import check_space
from uvar_tune.errors import ConfigError, nearest
from uvar_tune.io.safe_load import parse_yaml, read_text

_COMMAND_LINE = "command line"
_MAY_BE_EMPTY = set(Config.model_fields) - {"verdict", "provenance"}  # sections: a heading with nothing below it


def read_config(
    path: str | Path, overrides: Iterable[str] = (), *, name: str | None = None, trials: int | None = None
) -> Config:
    """The validated configuration of a space file or export.

    Args:
        path: YAML file.
        overrides: ``section.key=value``, the value as YAML.
        name: replaces ``study.name`` (option ``--study``).
        trials: replaces ``study.trials`` (option ``--trials``).

    Raises:
        ConfigError: an unreadable file, YAML that does not parse, an unknown key, a value out of range, a space with an
            invalid point, an override of a searched parameter.
    """
    options = [("study.trials", trials, "--trials"), ("study.name", name, "--study")]
    return build_config(
        parse_yaml(read_text(path), str(path)),
        [*map(_parse_override, overrides), *(option for option in options if option[1] is not None)],
        where=str(path),
    )


def parse_overrides(texts: Iterable[str]) -> dict[str, Any]:
    """The values of ``section.key=value`` arguments by dotted name; the last of equal names counts.

    Raises:
        ConfigError: an argument of another form, an unknown setting, or a value that is not YAML.
    """
    return {name: value for name, value, _ in map(_parse_override, texts)}


def config_from_mapping(tree: Mapping[str, Any], overrides: Iterable[str] = ()) -> Config:
    """The validated configuration of plain data, with ``section.key=value`` overrides.

    Raises:
        ConfigError: as `read_config`.
    """
    return build_config(dict(tree), [*map(_parse_override, overrides)], where="configuration")


def build_config(tree: Any, overrides: list[tuple[str, Any, str]], *, where: str) -> Config:
    """The validated configuration of plain data.

    Args:
        tree: nested sections.
        overrides: (dotted name, value, where it was given).
        where: file or argument that holds ``tree``, for messages.

    Raises:
        ConfigError: as `read_config`.
    """
    _require_mapping(tree, where)
    changed, sources = tree, {}
    for name, value, source in overrides:
        changed = _with_value(changed, name, value, source)
        if name in sources:
            raise ConfigError(f"{name} is given twice", where=source)
        sources[name] = source
    try:
        config = validate(absolute_paths(changed), where)
        _check_overrides(config, sources)
    except ConfigError as error:
        place = _source_of_error(error.message, sources, tree, where)
        raise ConfigError(error.message, where=place, nearest=error.nearest) from None
    return config


def validate(tree: Any, where: str) -> Config:
    """The configuration of plain data, paths as they are.

    Args:
        tree: nested sections.
        where: file or argument that holds it, for messages.

    Raises:
        ConfigError: the first invalid key or value.
    """
    _require_mapping(tree, where)
    _require_valid_text(tree, "", where)
    try:
        config = Config.model_validate(
            {key: ({} if value is None and key in _MAY_BE_EMPTY else value) for key, value in tree.items()}
        )
        check_space(config)
    except ValidationError as error:
        raise config_error(error, where) from None
    except ConfigError as error:
        raise ConfigError(error.message, where=where, nearest=error.nearest) from None
    return config


def _require_mapping(tree: Any, where: str) -> None:
    if not isinstance(tree, dict):
        raise ConfigError("a configuration is a mapping of sections", where=where)


def _require_valid_text(value: Any, key: str, where: str) -> None:
    """ConfigError for a text with a NUL or a lone surrogate, which neither paths nor UTF-8 files can hold."""
    if isinstance(value, (dict, list, tuple)):
        for part, inner in value.items() if isinstance(value, dict) else enumerate(value):
            _require_valid_text(inner, f"{key}.{part}".lstrip("."), where)
    elif isinstance(value, str) and ("\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value)):
        raise ConfigError(f"{key[:80]} {value!r:.80} holds a character that no text may hold", where=where)


def _check_overrides(config: Config, sources: dict[str, str]) -> None:
    """ConfigError for an override of a parameter that the space searches or fixes."""
    for name in sources:
        entry = config.space.get(name)
        if entry is None:
            continue
        value, fixed = config.get(name), entry.choices[0] if entry.role == "fixed" else None
        if entry.role != "fixed":
            raise ConfigError(
                f"{name} {value!r}: space.{name} searches it; change its range or baseline there, or remove it from "
                "the space"
            )
        if value != fixed:
            raise ConfigError(
                f"{name} {value!r}: space.{name} fixes it at {fixed!r}; change it there", nearest=str(fixed)
            )


def _source_of_error(message: str, sources: dict[str, str], tree: Any, where: str) -> str:
    """Where the invalid value was given: by the override that the message names, else in the file or by overrides."""
    for name, source in sources.items():
        if re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", message):
            return source
    if not sources:
        return where
    try:
        validate(tree, where)
    except ConfigError:
        return where
    return _COMMAND_LINE


def _parse_override(text: str) -> tuple[str, Any, str]:
    """(dotted name, value, where it was given) of ``section.key=value``."""
    name, equals, value = text.partition("=")
    name = name.strip()
    if not equals or "." not in name:
        raise ConfigError(f"{text!r} is not of the form section.key=value", where=_COMMAND_LINE)
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ConfigError(f"{ascii(text)}: the locale cannot decode it; set LC_ALL=C.UTF-8", where=_COMMAND_LINE)
    if name not in dotted_names():
        raise ConfigError(f"unknown setting {name!r}", where=_COMMAND_LINE, nearest=nearest(name, dotted_names()))
    return name, parse_yaml(value, f"{_COMMAND_LINE}, {name}"), _COMMAND_LINE


def _with_value(tree: dict[str, Any], name: str, value: Any, source: str) -> dict[str, Any]:
    section, key = name.split(".", 1)
    settings = tree.get(section)
    if not isinstance(settings, (dict, type(None))):
        raise ConfigError(f"section {section!r} is not a mapping", where=source)
    return {**tree, section: {**(settings or {}), key: value}}
