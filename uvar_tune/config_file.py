"""Reading a configuration: YAML without aliases or duplicate keys, overrides, and errors that fit one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from uvar_tune.config import Config, dotted_names
from uvar_tune.config_errors import complaint
from uvar_tune.errors import ConfigError, nearest
from uvar_tune.space import check_space

_MAX_BYTES = 2**20
_MAY_BE_EMPTY = set(Config.model_fields) - {"verdict", "provenance"}  # a heading with nothing below it


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses aliases (they can explode) and duplicate keys (one would be lost silently)."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise ConfigError("YAML aliases (*name) are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise ConfigError(f"line {key_node.start_mark.line + 1}: key {key!r} is not a word")
            if key in seen:
                raise ConfigError(f"line {key_node.start_mark.line + 1}: key {key!r} stands twice")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def parse_yaml(text: str, where: str) -> Any:
    """The plain data of a YAML text. Raises ConfigError with the line at which it does not parse."""
    try:
        return yaml.load(text, Loader=_Loader)
    except ConfigError as error:
        raise ConfigError(error.message, where=where) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError(f"{at}not YAML: {getattr(error, 'problem', None) or 'unreadable'}", where=where) from None
    except (ValueError, RecursionError, TypeError) as error:
        raise ConfigError(f"not a configuration: {error}".splitlines()[0], where=where) from None


def read_config(path: str | Path, overrides: list[str] = (), *, name: str | None = None) -> Config:
    """The validated configuration of a space file or export, with ``key=value`` overrides applied.

    Raises:
        ConfigError: a missing or unreadable file, YAML that does not parse, an unknown key (with the nearest), a value
            out of range, a space that the schema does not allow somewhere in its range.
    """
    tree = parse_yaml(read_text(path), str(path))
    if not isinstance(tree, dict):
        raise ConfigError("a configuration is a mapping of sections", where=str(path))
    for override in overrides:
        tree = _apply(tree, override)
    if name is not None:
        tree = _with(tree, "study", "name", name)
    return validate(tree, str(path))


def validate(tree: dict[str, Any], where: str) -> Config:
    """Config from plain data; every complaint becomes one ConfigError with the file and the key."""
    try:
        config = Config.model_validate({key: ({} if value is None and key in _MAY_BE_EMPTY else value)
                                        for key, value in tree.items()})
        check_space(config)
    except ValidationError as error:
        raise complaint(error, where) from None
    except ConfigError as error:
        raise ConfigError(error.message, where=where, nearest=error.nearest) from None
    return config


def read_text(path: str | Path) -> str:
    path = Path(path)
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"larger than {_MAX_BYTES} bytes: not a configuration", where=str(path))
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise ConfigError("no such file", where=str(path), nearest=nearest(path.name, siblings)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", where=str(path)) from None


def _apply(tree: dict[str, Any], override: str) -> dict[str, Any]:
    name, equals, text = override.partition("=")
    name = name.strip()
    if not equals or "." not in name:
        raise ConfigError(f"{override!r} is not of the form section.key=value", where="command line")
    if name not in dotted_names():
        raise ConfigError(f"unknown setting {name!r}", where="command line", nearest=nearest(name, dotted_names()))
    return _with(tree, *name.split(".", 1), parse_yaml(text, f"command line, {name}"))


def _with(tree: dict[str, Any], section: str, key: str, value: Any) -> dict[str, Any]:
    held = tree.get(section)
    if not isinstance(held, (dict, type(None))):
        raise ConfigError(f"section {section!r} is not a mapping", where="command line")
    return {**tree, section: {**(held or {}), key: value}}
