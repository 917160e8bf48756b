"""Files from elsewhere, read as data: nothing in them runs or explodes, and what is wrong with one is told in one line."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import torch
import yaml

from uvar_tune.errors import ConfigError, first_line
from uvar_tune.io.tensor_file import load_tensors

_MAX_BYTES, _MAX_YAML_BYTES = 2**24, 2**20  # of a text: what we write ourselves is far smaller
_MAX_YAML_NODES = 2**15  # 2 s; a configuration that names every class of the largest data sets has fewer


class _Plain(yaml.SafeLoader):
    """Without aliases: a few lines of them unfold to gigabytes; and of so many nodes at most, for each takes its time."""

    nodes = 0

    def compose_node(self, parent, index):
        self.nodes += 1
        if self.nodes > _MAX_YAML_NODES:
            raise ValueError(f"more than {_MAX_YAML_NODES} nodes")
        if self.check_event(yaml.AliasEvent):
            raise ValueError("YAML aliases (*name) are not allowed")
        return super().compose_node(parent, index)


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping. Raises ConfigError where the file holds anything else."""
    return _read(path, lambda text: yaml.load(text, Loader=_Plain), _MAX_YAML_BYTES)


def read_json(path: Path) -> dict[str, Any]:
    """A mapping. Raises ConfigError where the file holds anything else."""
    return _read(path, json.loads, _MAX_BYTES)


def _read(path: Path, parse, max_bytes: int) -> dict[str, Any]:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("no regular file")
        if found.st_size > max_bytes:
            raise ValueError(f"larger than {max_bytes} bytes")
        tree = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, TypeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot be read ({_line(error)})", where=str(path)) from None
    if not isinstance(tree, dict):
        raise ConfigError("holds no mapping", where=str(path))
    return tree


def read_tensors(path: Path) -> dict[str, Any]:
    """Tensors and plain values that `torch.save` wrote, on the CPU; what would run code or take far more room is refused."""
    try:
        tree = load_tensors(path)
    except Exception as error:  # whatever a damaged or hostile pickle makes the reader raise
        raise ConfigError(f"holds more than plain tensors, or is damaged ({_line(error)})", where=str(path)) from None
    if not isinstance(tree, dict):
        raise ConfigError("holds no mapping", where=str(path))
    return tree


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, on the CPU."""
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # the library has errors of its own for what is no such file
        raise ConfigError(f"is no safetensors file ({_line(error)})", where=str(path)) from None


def check_size(described: torch.nn.Module, held: dict[str, torch.Tensor], where: str) -> None:
    """ConfigError where settings describe a far larger network than there are weights for.

    Args:
        described: built on the meta device, so that it takes no memory.
    """
    wanted = sum(value.numel() for value in described.state_dict().values())
    found = sum(value.numel() for value in held.values())
    if wanted > 2 * found + 2**20:
        raise ConfigError(f"its settings describe {wanted:,} parameters, its weights are {found:,}", where=where)


def _line(error: BaseException) -> str:
    return " ".join(first_line(error).split())[:200]
