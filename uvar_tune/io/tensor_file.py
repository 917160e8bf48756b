"""Files that `torch.save` wrote, read as plain tensors: nothing in them runs, unfolds, or claims more than the file holds."""

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
_TAIL = 98  # bytes of an archive after its directory: 56 and 20 of the wide form, 22 of the plain one
_OLD_PICKLES = 5  # at the start of a file that is no archive: magic number, protocol, system, content, keys
_SLACK = 2**20
_SHARED = 8  # times that the tensors together may claim what the file holds, by sharing it
# What tensors and plain values are made with. PyTorch allows more, some of which make gigabytes of a number or a short text.
_MAKERS = {
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
    """What `torch.save` wrote, its tensors on ``device``: `cpu`, or `meta` for a look that costs no memory.

    Raises ValueError, and whatever else a damaged or hostile file makes the readers raise.
    """
    path = Path(path)
    size = _check_file(path)
    tree = torch.load(path, map_location=device, weights_only=True)
    _check_tensors(tree, size, device)
    return tree


def _check_file(path: Path) -> int:
    """The size of a file that reading cannot unfold to much more than that."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is no regular file")
    with path.open("rb") as handle:
        packed = handle.read(len(_ZIP)) == _ZIP
        handle.seek(0)
        if packed:
            _check_archive(handle, found.st_size)
        else:
            for _ in range(_OLD_PICKLES):
                _check_pickle(handle)
    return found.st_size


def _check_archive(handle: BinaryIO, size: int) -> None:
    with zipfile.ZipFile(handle) as archive:
        unfolded = sum(entry.file_size for entry in archive.infolist())
        if unfolded > size + _SLACK:
            raise ValueError(f"it unfolds to {unfolded:,} bytes, but has {size:,}")
        handle.seek(max(0, size - _TAIL))
        tail = handle.read(_TAIL)
        wide = tail[:4] == _END64
        told = struct.unpack_from(*(("<Q", tail, 48) if wide else ("<I", tail, len(tail) - 6)))[0]
        if (
            archive.comment
            or told != archive.start_dir
            or wide != (tail[56:60] == _LOCATOR)
            or wide
            and struct.unpack_from("<Q", tail, 64)[0] != size - _TAIL
        ):
            raise ValueError("its directory is not where it says, so that readers differ in what they find")
        for entry in archive.infolist():
            if "data.pkl" in entry.orig_filename.lower():
                with archive.open(entry) as stream:
                    _check_pickle(stream)


def _check_pickle(stream: BinaryIO) -> None:
    for opcode, argument, _ in pickletools.genops(stream):
        name = argument.split(" ")[-1] if opcode.name == "GLOBAL" else ""
        if name and not (
            name in _MAKERS or name.endswith("Storage") or isinstance(getattr(torch, name, None), torch.dtype)
        ):
            raise ValueError(f"it names {argument.replace(' ', '.')}")


def _check_tensors(tree: Any, size: int, device: str) -> None:
    """ValueError for a tensor that is not plain, and where they claim far more than a file of this size holds."""
    held, claimed = {}, 0
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
                f"a tensor of shape {shape} is {tensor.dtype}, {tensor.layout}, on {tensor.device}: none of weights"
            )
        storage, wanted = tensor.untyped_storage(), math.prod(shape) * tensor.itemsize
        if wanted > storage.nbytes():
            raise ValueError(f"a tensor of shape {shape} claims {wanted:,} bytes and holds {storage.nbytes():,}")
        held[storage._cdata] = storage.nbytes()
        claimed += wanted
    if sum(held.values()) > size or claimed > _SHARED * size + _SLACK:
        raise ValueError(f"its tensors claim {max(claimed, sum(held.values())):,} bytes, the file has {size:,}")


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    """Each tensor once, however it is nested."""
    left, seen = [tree], set()
    while left:
        node = left.pop()
        if id(node) in seen:
            continue
        if isinstance(node, torch.Tensor):
            seen.add(id(node))
            yield node
        elif isinstance(node, (Mapping, list, tuple, set)):
            seen.add(id(node))
            left.extend(node.values() if isinstance(node, Mapping) else node)
