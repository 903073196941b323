"""Files of torch.save without PyTorch: the tree of plain values in them, with tensors as inert descriptions.

Two containers: a zip archive (PyTorch 1.6 and later: ``*/data.pkl`` and one member per storage) and the older stream
of five pickles followed by the storages. The pickles run on :class:`..containers.pickles.Machine`; the only globals it is given
are those below, none of which does more than note its arguments, and inert names in the place of all others. Numbers
are read from a memory map, and only for the tensors that are asked for.

Source: torch/serialization.py and torch/_utils.py of PyTorch.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import CheckpointError
from ..common import FLOAT_TYPES, shown, to_float32
from ..containers import pickles, zips

LEGACY_START = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")  # the pickle of a magic number
_LEGACY_PROTOCOL = 1001
_MAX_RANK = 8

_STORAGES = {
    "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64",
    "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool",
}  # fmt: skip
_DTYPES = {*_STORAGES.values(), "half", "float", "double", "long", "int", "short"}
_NUMPY: dict[str, np.dtype[Any]] = {
    "bfloat16": np.dtype("<u2"),
    "bool": np.dtype("u1"),
}  # others have the same name in NumPy


def _numpy_dtype(name: str) -> np.dtype[Any]:
    return _NUMPY[name] if name in _NUMPY else np.dtype(name).newbyteorder("<")


@dataclass(frozen=True, slots=True)
class _StorageType:
    dtype: str


@dataclass(frozen=True, slots=True)
class _Storage:
    """``count`` numbers, ``offset`` numbers into the storage ``key`` of the file."""

    key: str
    dtype: str
    count: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor in the file: where its numbers lie, its shape and strides (in numbers). Nothing is read yet."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    file: _File

    @property
    def dtype(self) -> str:
        """PyTorch's name of the type of its numbers."""
        return self.storage.dtype

    def read(self) -> np.ndarray:
        """The numbers as a float32 array of this shape; a view of the file where it can be. Raises CheckpointError."""
        if self.dtype not in FLOAT_TYPES:
            raise CheckpointError(f"got a tensor of {self.dtype}, expected floating point")
        numbers = self.file.numbers(self.storage)
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        if 0 not in self.shape and last >= len(numbers):
            raise CheckpointError(f"a tensor reaches to number {last} of a storage of {len(numbers)}: damaged file")
        strides = [s * numbers.itemsize for s in self.strides]
        view = np.lib.stride_tricks.as_strided(numbers[self.offset :], self.shape, strides, writeable=False)
        return to_float32(view, self.dtype)


def load(path: Path) -> Any:
    """What was saved in the file: plain values, with :class:`Tensor` in place of tensors and parameters, and
    :class:`..containers.pickles.Opaque` in place of all else.

    Raises CheckpointError for a file that is damaged.
    """
    with path.open("rb") as file:
        return _File(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))).load()


class _File:
    """One mapped file of torch.save, and where in it each storage lies."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._size = len(data)
        self._extents: dict[str, tuple[int, int]] = {}  # storage -> (start, length) in bytes
        self._described: dict[str, _Storage] = {}

    def load(self) -> Any:
        """What was saved."""
        return self._load_zip() if self._data[:2] == b"PK" else self._load_legacy()

    def numbers(self, storage: _Storage) -> np.ndarray:
        """The numbers of a storage: a one-dimensional view of the file."""
        if storage.key not in self._extents:
            raise CheckpointError(f"the numbers of storage {shown(storage.key)} are not in the file: it is damaged")
        start, length = self._extents[storage.key]
        dtype = _numpy_dtype(storage.dtype)
        first, last = storage.offset * dtype.itemsize, (storage.offset + storage.count) * dtype.itemsize
        if last > length:
            raise CheckpointError(
                f"storage {shown(storage.key)} has {length} bytes, expected {last}: the file is damaged"
            )
        return np.frombuffer(self._data[start + first : start + last], dtype)

    # -- containers -------------------------------------------------------------------------------------------

    def _load_zip(self) -> Any:
        members = zips.members(self._data)
        roots = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise CheckpointError("this zip archive was not written by torch.save: it has no data.pkl in a folder")
        root = roots[0]
        start, length = members.get(f"{root}byteorder", (0, 0))
        if length and bytes(self._data[start : start + min(length, 16)]) != b"little":
            raise CheckpointError("the file was saved on a big-endian machine: save it once more on a usual one")
        self._extents = {
            name.removeprefix(f"{root}data/"): extent for name, extent in members.items() if f"{root}data/" in name
        }
        start, length = members[f"{root}data.pkl"]
        return self._pickle(start, start + length)[0]

    def _load_legacy(self) -> Any:
        position = len(LEGACY_START)
        version, position = self._pickle(position, self._size)
        if bytes(self._data[: len(LEGACY_START)]) != LEGACY_START or version != _LEGACY_PROTOCOL:
            raise CheckpointError("not a file of torch.save, or one of a version of PyTorch that is not known here")
        system, position = self._pickle(position, self._size)
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise CheckpointError("the file was saved on a big-endian machine: save it once more on a usual one")
        content, position = self._pickle(position, self._size)
        keys, position = self._pickle(position, self._size)
        if not isinstance(keys, list):
            raise CheckpointError("the file's list of storages is missing: the file is damaged")
        for key in keys:
            storage = self._described.get(key) if isinstance(key, str) else None
            if storage is None or position + 8 > self._size:
                raise CheckpointError("the file's list of storages does not fit its content: the file is damaged")
            (count,) = struct.unpack_from("<q", self._data, position)
            length = count * _numpy_dtype(storage.dtype).itemsize
            position += 8
            if not 0 <= length <= self._size - position:
                raise CheckpointError(
                    f"storage {shown(key)} claims {length} bytes, {self._size - position} are left: the file is cut off"
                )
            self._extents[key] = (position, length)
            position += length
        return content

    def _pickle(self, start: int, end: int) -> tuple[Any, int]:
        machine = pickles.Machine(self._data[:end], start, _find_global(self), self._load_persistent)
        return machine.load(), machine.position

    def _load_persistent(self, identity: Any) -> _Storage:
        """The storage that ('storage', type, key, device, count) describes, or part of it in the oldest files."""
        if isinstance(identity, tuple) and identity and identity[0] == "module":
            raise whole_model(shown(identity[1]))
        view: tuple[Any, ...] = (None, 0, None)
        if isinstance(identity, tuple) and len(identity) == 6 and isinstance(identity[5], tuple):
            view = identity[5]
        if not (
            isinstance(identity, tuple)
            and len(identity) in (5, 6)
            and isinstance(identity[1], _StorageType)
            and isinstance(identity[2], str)
            and len(view) == 3
            and _are_sizes((identity[4], view[1], view[2] or 0))
        ):
            raise CheckpointError("a storage is described in a way that torch.save does not use: the file is damaged")
        _, kind, key, _, count = identity[:5]
        self._described.setdefault(key, _Storage(key, kind.dtype, count))
        return _Storage(key, kind.dtype, count if view[2] is None else view[2], view[1])


# -- the globals that a state dict needs ----------------------------------------------------------------------


def _are_sizes(values: Sequence[Any]) -> bool:
    return all(type(n) is int and 0 <= n < 2**48 for n in values)


def whole_model(name: str) -> CheckpointError:
    """The explanation of a file that holds objects of the class ``name`` and no tensors of a generator."""
    return CheckpointError(
        f"the file holds a whole pickled model or other program objects (it refers to {name}), not only numbers. "
        f"Reading those would execute code, so nothing was read. In the program that made the file, save the numbers "
        f"alone: torch.save(net.state_dict(), 'latest_net_G.pth')"
    )


def _find_global(file: _File) -> Any:
    """The function that looks up a global for the pickles of ``file``."""

    def tensor(arguments: tuple[Any, ...]) -> Tensor:
        """What torch's own function rebuilds from ``arguments``, with its numbers unread."""
        # (storage, offset, size, stride, requires_grad, hooks, metadata); the oldest files end after the stride
        storage, offset, shape, strides = arguments[:4] if len(arguments) >= 4 else (None, 0, (), ())
        if not (
            isinstance(storage, _Storage)
            and isinstance(shape, tuple)
            and isinstance(strides, tuple)
            and len(shape) == len(strides) <= _MAX_RANK
            and _are_sizes((offset, *shape, *strides))
        ):
            raise CheckpointError("a tensor is described in a way that torch.save does not use: the file is damaged")
        return Tensor(storage, offset, shape, strides, file)

    known = {
        ("collections", "OrderedDict"): _dict,
        ("collections", "Counter"): _dict,
        ("torch._utils", "_rebuild_tensor"): tensor,
        ("torch._utils", "_rebuild_tensor_v2"): tensor,
        ("torch._utils", "_rebuild_parameter"): _first,
        ("torch._utils", "_rebuild_parameter_with_state"): _first,
        ("torch", "Size"): _first,
        ("torch", "device"): _first,
    }

    def find(module: str, name: str) -> Any:
        """What stands for the global ``module.name``: inert, if it isn't for plain numbers."""
        if (module, name) in known:
            return pickles.Constructor(name, known[module, name])
        kind = name.removesuffix("Storage")
        if module in ("torch", "torch.cuda") and kind != name and kind in _STORAGES:
            return _StorageType(_STORAGES[kind])
        if module == "torch" and name in _DTYPES:
            return name
        opaque = pickles.Opaque(f"{module}.{name}")
        return pickles.Constructor(opaque.name, lambda arguments: opaque)

    return find


def _first(arguments: tuple[Any, ...]) -> Any:
    """What a value wraps: a parameter's tensor, a size's numbers, a device's name."""
    if not arguments:
        raise CheckpointError("a parameter in the file wraps nothing: the file is damaged")
    return arguments[0]


def _dict(arguments: tuple[Any, ...]) -> dict[str | int, Any]:
    """An OrderedDict: made empty and filled later, or (Python 2) from a list of pairs."""
    if not arguments:
        return {}
    if len(arguments) > 1 or not isinstance(arguments[0], list | tuple | dict):
        raise CheckpointError("a dict in the file is made from what is no list of pairs: the file is damaged")
    pairs = arguments[0].items() if isinstance(arguments[0], dict) else arguments[0]
    return pickles.checked_items(pairs)
