"""Untrusted files of `torch.save`, read as plain tensors.

`torch.load(weights_only=True)` runs no code, but a small file can still allocate gigabytes. Archive, pickle and tensors
are therefore checked against the size of the file.
"""

from __future__ import annotations

import math
import pickletools
import stat
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

_ZIP, _END64, _LOCATOR = b"PK\3\4", b"PK\6\6", b"PK\6\7"
_TAIL = 98  # bytes after the directory of an archive: 56 + 20 in ZIP64, 22 in plain ZIP
_OLD_PICKLES = 5  # at the start of a legacy file: magic number, protocol, system, content, keys
_SLACK = 2**20
_SHARED = 8  # tensors that share storage may together claim this multiple of the file size
# Constructors of tensors and plain values. PyTorch allows more, some of which allocate gigabytes from a short argument.
_CONSTRUCTORS = {
    "OrderedDict",
    "Counter",
    "set",
    "complex",
    "Size",
    "device",
    "Tensor",
    "Parameter",
    "_rebuild_from_type_v2",
    "_rebuild_parameter",
    "_rebuild_parameter_with_state",
    "_rebuild_tensor",
    "_rebuild_tensor_v2",
    "_rebuild_tensor_v3",
}
_DTYPES = {
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
}


def load_tensors(path: str | Path, *, device: str = "cpu") -> Any:
    """The content of a file of `torch.save`.

    Args:
        path: the file.
        device: of the tensors: `cpu`, or `meta` to inspect them without using memory.

    Raises:
        ValueError: the file holds something else than plain tensors, or expands to far more than its size.
        Exception: whatever a damaged or hostile file makes the readers of PyTorch raise.
    """
    path = Path(path)
    size = _check_file(path)
    tree = torch.load(path, map_location=device, weights_only=True)
    _check_tensors(tree, size, device)
    return tree


def _check_file(path: Path) -> int:
    """The size in bytes of a file that does not expand to much more when it is read."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a regular file")
    with path.open("rb") as handle:
        start = handle.read(9)
        if len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < status.st_size:
            raise ValueError("it is a safetensors file; a file of torch.save (.pth) is expected")
        packed = start[: len(_ZIP)] == _ZIP
        handle.seek(0)
        if packed:
            _check_archive(handle, status.st_size)
        else:
            for _ in range(_OLD_PICKLES):
                _check_pickle(handle)
    return status.st_size


def _check_archive(handle: BinaryIO, size: int) -> None:
    with zipfile.ZipFile(handle) as archive:
        expanded = sum(entry.file_size for entry in archive.infolist())
        if expanded > size + _SLACK:
            raise ValueError(f"it expands to {expanded:,} bytes, but has {size:,}")
        handle.seek(max(0, size - _TAIL))
        tail = handle.read(_TAIL)
        wide = tail[:4] == _END64
        start = struct.unpack_from(*(("<Q", tail, 48) if wide else ("<I", tail, len(tail) - 6)))[0]
        if (
            archive.comment
            or start != archive.start_dir
            or wide != (tail[56:60] == _LOCATOR)
            or wide
            and struct.unpack_from("<Q", tail, 64)[0] != size - _TAIL
        ):
            raise ValueError("its directory is not at the stated offset, so that readers disagree about the content")
        for entry in archive.infolist():
            if "data.pkl" in entry.orig_filename.lower():
                with archive.open(entry) as stream:
                    _check_pickle(stream)


def _check_pickle(stream: BinaryIO) -> None:
    for opcode, argument, _ in pickletools.genops(stream):
        name = argument.split(" ")[-1] if opcode.name == "GLOBAL" else ""
        if name and not (
            name in _CONSTRUCTORS or name.endswith("Storage") or isinstance(getattr(torch, name, None), torch.dtype)
        ):
            raise ValueError(f"it names {argument.replace(' ', '.')}")


def _check_tensors(tree: Any, size: int, device: str) -> None:
    """Raise ValueError for a tensor that is not plain, or if the tensors claim far more than ``size`` bytes."""
    stored, claimed = {}, 0
    for tensor in _tensors(tree):
        shape = tuple(tensor.shape)
        if (
            type(tensor) not in (torch.Tensor, torch.nn.Parameter)
            or tensor.layout != torch.strided
            or tensor.is_nested
            or tensor.device.type != device
            or tensor.dtype not in _DTYPES
        ):
            raise ValueError(
                f"a tensor of shape {shape} is {tensor.dtype}, {tensor.layout}, on {tensor.device}: not plain weights"
            )
        storage, nbytes = tensor.untyped_storage(), math.prod(shape) * tensor.itemsize
        if nbytes > storage.nbytes():
            raise ValueError(f"a tensor of shape {shape} claims {nbytes:,} bytes and holds {storage.nbytes():,}")
        stored[storage._cdata] = storage.nbytes()
        claimed += nbytes
    if sum(stored.values()) > size or claimed > _SHARED * size + _SLACK:
        raise ValueError(f"its tensors claim {max(claimed, sum(stored.values())):,} bytes, the file has {size:,}")


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    """Each tensor of a nested structure once."""
    pending, seen = [tree], set()
    while pending:
        node = pending.pop()
        if id(node) in seen:
            continue
        if isinstance(node, torch.Tensor):
            seen.add(id(node))
            yield node
        elif isinstance(node, (Mapping, list, tuple, set)):
            seen.add(id(node))
            pending.extend(node.values() if isinstance(node, Mapping) else node)
