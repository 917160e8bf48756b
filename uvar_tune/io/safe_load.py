"""Loading of untrusted files as plain data: no code runs, nothing expands, an error is one line.

YAML and JSON are bounded in size and read as mappings; tensors come from safetensors or from `tensor_file`.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from uvar_tune.errors import ConfigError, first_line, nearest

if TYPE_CHECKING:
    import torch

MAX_YAML_BYTES, MAX_JSON_BYTES = 2**20, 2**24  # files written by this package are far smaller
_MAX_YAML_NODES = 2**15  # about 2 s; a configuration that lists every class of a large data set has fewer
_MAX_INT_BITS = 1024  # a float holds no larger number
# Plain scalars by the core schema of YAML 1.2: on, off, yes, no, dates and 1:30 are text, 010 is ten. Underscores may
# group digits, as in YAML 1.1 and Python.
_SCALARS = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
)


class _YamlLoader(yaml.SafeLoader):
    """SafeLoader of YAML 1.2 scalars, without aliases (they can expand to gigabytes) and duplicate keys.

    The number of nodes is bounded.
    """

    nodes = 0
    yaml_implicit_resolvers = {}

    def compose_node(self, parent, index):
        """Count a node and refuse an alias."""
        if self.check_event(yaml.AliasEvent):
            raise ConfigError("YAML aliases (*name) are not allowed")
        self.nodes += 1
        if self.nodes > _MAX_YAML_NODES:
            raise ConfigError(f"more than {_MAX_YAML_NODES:,} keys and values")
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        """Refuse keys that are not text and keys given twice."""
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise ConfigError(f"line {line}: key {key!r} is not a word")
            if key in seen:
                raise ConfigError(f"line {line}: key {key!r} is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)

    def construct_integer(self, node):
        """Decimal, octal (0o) or hexadecimal (0x); refuse an integer beyond the range of floats."""
        text = node.value.replace("_", "")
        value = int(text, 16 if "0x" in text else 8 if "0o" in text else 10)
        if value.bit_length() > _MAX_INT_BITS:
            line = node.start_mark.line + 1
            raise ConfigError(f"line {line}: a whole number of {value.bit_length():,} bits is too large")
        return value


_YamlLoader.add_constructor("tag:yaml.org,2002:int", _YamlLoader.construct_integer)


class _YamlDumper(yaml.SafeDumper):
    """SafeDumper that quotes a text which YAML 1.1 or 1.2 would read as something else."""


for _tag, _pattern, _first in _SCALARS:
    for _kind in (_YamlLoader, _YamlDumper):
        _kind.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})$"), list(_first))


def parse_yaml(text: str, where: str) -> Any:
    """The plain data of a YAML text.

    Raises:
        ConfigError: with the line at which the text does not parse.
    """
    try:
        return yaml.load(text, Loader=_YamlLoader)
    except ConfigError as error:
        raise ConfigError(error.message, where=where) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError(f"{at}not YAML: {getattr(error, 'problem', None) or 'unreadable'}", where=where) from None
    except (ValueError, RecursionError, TypeError) as error:
        raise ConfigError(f"not a configuration: {first_line(error)}", where=where) from None


def dump_yaml(tree: Any) -> str:
    """Plain data as YAML, keys in their order; `parse_yaml` reads it back unchanged."""
    return yaml.dump(tree, Dumper=_YamlDumper, sort_keys=False, allow_unicode=True, width=110)


def read_text(path: str | Path, *, max_bytes: int = MAX_YAML_BYTES) -> str:
    """The UTF-8 text of a regular file.

    Raises:
        ConfigError: no such file (with the nearest YAML file next to it), not a regular file, too large or not UTF-8.
    """
    path = Path(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError("cannot be read (not a regular file)", where=str(path))
        if status.st_size > max_bytes:
            raise ConfigError(f"cannot be read (larger than {max_bytes} bytes)", where=str(path))
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        siblings = [other.name for other in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise ConfigError("no such file", where=str(path), nearest=nearest(path.name, siblings)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read ({_line(error)})", where=str(path)) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds; ConfigError for anything else."""
    return _mapping(path, lambda text: parse_yaml(text, str(path)), MAX_YAML_BYTES)


def read_json(path: Path) -> dict[str, Any]:
    """The mapping that a JSON file holds; ConfigError for anything else."""
    return _mapping(path, json.loads, MAX_JSON_BYTES)


def _mapping(path: Path, parse: Callable[[str], Any], max_bytes: int) -> dict[str, Any]:
    text = read_text(path, max_bytes=max_bytes)
    try:
        tree = parse(text)
    except (ValueError, RecursionError) as error:
        message = error.message if isinstance(error, ConfigError) else _line(error)
        raise ConfigError(f"cannot be read ({message})", where=str(path)) from None
    if not isinstance(tree, dict):
        raise ConfigError("holds no mapping", where=str(path))
    return tree


def read_tensors(path: Path) -> dict[str, Any]:
    """Tensors and plain values that `torch.save` wrote, on the CPU.

    Raises:
        ConfigError: the file would run code, expands to far more than its size, or is damaged.
    """
    from uvar_tune.io.tensor_file import load_tensors

    try:
        tree = load_tensors(path)
    except Exception as error:  # whatever a damaged or hostile pickle makes the reader raise
        raise ConfigError(f"holds more than plain tensors, or is damaged ({_line(error)})", where=str(path)) from None
    if not isinstance(tree, dict):
        raise ConfigError("holds no mapping", where=str(path))
    return tree


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, on the CPU; ConfigError for another file."""
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # the library has its own errors for a file of another format
        raise ConfigError(f"is no safetensors file ({_line(error)})", where=str(path)) from None


def check_size(network: torch.nn.Module, weights: dict[str, torch.Tensor], where: str) -> None:
    """Refuse settings that describe a far larger network than there are weights for.

    Args:
        network: built on the meta device, so that it takes no memory.
        weights: what is to be loaded into it.
        where: the file, for the message.

    Raises:
        ConfigError: more than twice as many parameters as weights.
    """
    described = sum(value.numel() for value in network.state_dict().values())
    stored = sum(value.numel() for value in weights.values())
    if described > 2 * stored + 2**20:
        raise ConfigError(f"its settings describe {described:,} parameters, its weights are {stored:,}", where=where)


def _line(error: BaseException) -> str:
    return " ".join(first_line(error).split())[:200]
