"""Files of torch.save without PyTorch: the tree of plain values in them, with unread tensors.

There are two layouts: a zip archive (PyTorch 1.6 and later: ``*/data.pkl`` and one member per storage), and the older
sequence of five pickles followed by the storages. TorchScript's archives have the first layout and the program's code
beside it, which is not read. The pickles run on :class:`..containers.pickles.Machine`. The only
globals that it is given are those below, which do no more than note their arguments; all others stand for inert names.

Source: torch/serialization.py and torch/_utils.py of PyTorch.
"""

from __future__ import annotations

import dataclasses
import math
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ...errors import CheckpointError
from ..containers import pickles, zips
from ..model_file import MAX_STRUCTURE, ModelFile, item_size
from ..tensors import StoredTensor
from ..text import shown

LEGACY_START = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")  # the pickle of a magic number
_LEGACY_PROTOCOL = 1001
_MAX_RANK = 8
_CODE = "/code/"  # where torch.jit.save puts the program, often compressed
_BIG_ENDIAN = "the file was saved on a big-endian machine: save it once more on a usual one"

_STORAGES = {
    "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64",
    "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool",
}  # fmt: skip
_DTYPE = re.compile(r"(?:b?float|u?int|bits)\d+(?:_\w+)?|bool|half|float|double|long|int|short")


def load(file: ModelFile) -> Any:
    """What was saved in a file: plain values, StoredTensor in place of tensors and parameters,
    :class:`..containers.pickles.Attributes` in place of the modules of a TorchScript program, and
    :class:`..containers.pickles.Opaque` in place of all other objects.

    Raises CheckpointError for a file that is damaged.
    """
    return _TorchFile(file).load()


def whole_model(name: str) -> CheckpointError:
    """The explanation of a file that holds objects of the class ``name`` and no tensors of a generator."""
    return CheckpointError(
        f"the file holds a whole pickled model or other program objects (it refers to {name}), not only numbers. "
        f"Reading those would execute code, so nothing was read. In the program that made the file, save the numbers "
        f"alone: torch.save(net.state_dict(), 'latest_net_G.pth')"
    )


def _exported(names: Iterable[str]) -> CheckpointError | None:
    """The explanation of an archive of torch.export; None if no name of a member shows that it is one."""
    if not any(name.endswith("/archive_format") for name in names):
        return None
    return CheckpointError(
        "the file holds a program that torch.export.save wrote, whose weights have no place of their own. Load it in "
        "PyTorch and save its numbers alone: torch.save(program.state_dict, 'latest_net_G.pth')"
    )


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


class _TorchFile:
    """One file of torch.save, and the part of it that each storage is."""

    def __init__(self, file: ModelFile) -> None:
        self._file = file
        self._parts: dict[str, ModelFile] = {}
        self._described: dict[str, _Storage] = {}
        self._world = pickles.World(_Globals(self).find, self._load_persistent)

    def load(self) -> Any:
        """What was saved."""
        return self._load_zip() if self._file.read(0, 2) == b"PK" else self._load_legacy()

    def numbers(self, storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
        """The numbers of a tensor; ``offset`` and ``strides`` count numbers of the storage."""
        part = self._parts.get(storage.key)
        if part is None:
            raise CheckpointError(f"the numbers of storage {shown(storage.key)} are not in the file: it is damaged")
        item = item_size(storage.dtype)
        end = (storage.offset + storage.count) * item
        if end > part.size:
            raise CheckpointError(
                f"storage {shown(storage.key)} has {part.size} bytes, expected {end}: the file is damaged"
            )
        if 0 in shape:
            return part.numbers(0, storage.dtype, shape)
        extent = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        if offset + extent > storage.count:
            raise CheckpointError(
                f"a tensor reaches to number {offset + extent - 1} of a storage of {storage.count}: damaged file"
            )
        self._file.budget.spend_tensor(max(0, math.prod(shape) - extent) * item)  # of numbers used repeatedly
        numbers = part.numbers((storage.offset + offset) * item, storage.dtype, (extent,))
        return np.lib.stride_tricks.as_strided(numbers, shape, [s * item for s in strides], writeable=False)

    # -- layouts ----------------------------------------------------------------------------------------------

    def _load_zip(self) -> Any:
        try:
            members = zips.members(self._file, unread=_CODE)
        except zips.PackedError as error:
            raise _exported([error.member]) or error from None
        if exported := _exported(members):
            raise exported
        roots = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise CheckpointError("this zip archive was not written by torch.save: it has no data.pkl in a folder")
        root = roots[0]
        order = members.get(f"{root}byteorder")
        if order and order.size and order.read(0, min(order.size, 16)) != b"little":
            raise CheckpointError(_BIG_ENDIAN)
        storages = f"{root}data/"
        self._parts = {name.removeprefix(storages): part for name, part in members.items() if storages in name}
        return pickles.Machine(members[f"{root}data.pkl"].read(), 0, self._file.budget, self._world).load()

    def _load_legacy(self) -> Any:
        data = self._file.read(0, min(self._file.size, MAX_STRUCTURE))
        machine = pickles.Machine(data, len(LEGACY_START), self._file.budget, self._world)
        version = machine.load()
        if not data.startswith(LEGACY_START) or version != _LEGACY_PROTOCOL:
            raise CheckpointError("not a file of torch.save, or one of a version of PyTorch that is not known here")
        system = machine.load()
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise CheckpointError(_BIG_ENDIAN)
        content = machine.load()
        keys = machine.load()
        if not isinstance(keys, list):
            raise CheckpointError("the file's list of storages is missing: the file is damaged")
        position = machine.position
        for key in keys:
            storage = self._described.get(key) if isinstance(key, str) else None
            if storage is None or position + 8 > self._file.size:
                raise CheckpointError("the file's list of storages does not fit its content: the file is damaged")
            (count,) = struct.unpack("<q", self._file.read(position, 8))
            length = count * item_size(storage.dtype)
            position += 8
            if not 0 <= length <= self._file.size - position:
                raise CheckpointError(
                    f"storage {shown(key)} claims {length} bytes, {self._file.size - position} are left: the file is "
                    f"cut off"
                )
            self._parts[key] = self._file.part(position, length)
            position += length
        return content

    def _load_persistent(self, identity: Any) -> _Storage:
        """The storage that ('storage', type, key, device, count) describes, or a part of it in the oldest files.

        There the tuple ends with a view: (its key, its offset, its count), or None.
        """
        if isinstance(identity, tuple) and identity and identity[0] == "module":
            raise whole_model(shown(identity[1] if len(identity) > 1 else None))
        if not (
            isinstance(identity, tuple)
            and len(identity) in (5, 6)
            and isinstance(identity[1], _StorageType)
            and isinstance(identity[2], str)
            and _are_sizes(identity[4:5])
        ):
            raise _unknown("a storage")
        _, kind, key, _, count = identity[:5]
        self._described.setdefault(key, _Storage(key, kind.dtype, count))
        view = identity[5] if len(identity) == 6 else None
        if view is None:
            return _Storage(key, kind.dtype, count)
        if not (isinstance(view, tuple) and len(view) == 3 and _are_sizes(view[1:])):
            raise _unknown("a view of a storage")
        return _Storage(key, kind.dtype, view[2], view[1])


# -- the globals that a state dict needs ----------------------------------------------------------------------


def _unknown(what: str) -> CheckpointError:
    return CheckpointError(f"{what} is described in a way that torch.save does not use: the file is damaged")


def _are_sizes(values: Sequence[Any]) -> bool:
    return all(type(n) is int and 0 <= n < 2**48 for n in values)


class _Globals:
    """What the globals of a file stand for."""

    def __init__(self, file: _TorchFile) -> None:
        self._file = file
        self._known = {
            ("collections", "OrderedDict"): _dict,
            ("collections", "Counter"): _dict,
            ("torch._utils", "_rebuild_tensor"): self._tensor,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_tensor_v3"): self._untyped_tensor,
            ("torch._utils", "_rebuild_parameter"): _first,
            ("torch._utils", "_rebuild_parameter_with_state"): _first,
            ("torch", "Size"): _first,
            ("torch", "device"): _first,
        }

    def find(self, module: str, name: str) -> Any:
        """What stands for the global ``module.name``: an inert name, if it isn't for plain numbers."""
        if (module, name) in self._known:
            return pickles.Constructor(name, self._known[module, name])
        kind = name.removesuffix("Storage")
        if module in ("torch", "torch.cuda") and kind != name and kind in _STORAGES:
            return _StorageType(_STORAGES[kind])
        if (module, name) == ("torch.storage", "UntypedStorage"):
            return _StorageType("uint8")
        if module == "torch" and _DTYPE.fullmatch(name):
            return name
        if module.split(".")[0] == "__torch__":  # a class of a TorchScript program
            return pickles.Constructor(name, lambda arguments: pickles.Attributes())
        opaque = pickles.Opaque(f"{module}.{name}")
        return pickles.Constructor(opaque.name, lambda arguments: opaque)

    def _tensor(self, arguments: tuple[Any, ...]) -> StoredTensor:
        """The tensor that PyTorch would rebuild from ``arguments``."""
        # (storage, offset, size, stride, requires_grad, hooks, metadata); the oldest files end after the stride
        storage, offset, shape, strides = arguments[:4] if len(arguments) >= 4 else (None, 0, (), ())
        if not (
            isinstance(storage, _Storage)
            and isinstance(shape, tuple)
            and isinstance(strides, tuple)
            and len(shape) == len(strides) <= _MAX_RANK
            and _are_sizes((offset, *shape, *strides))
        ):
            raise _unknown("a tensor")
        return StoredTensor(shape, storage.dtype, partial(self._file.numbers, storage, offset, shape, strides))

    def _untyped_tensor(self, arguments: tuple[Any, ...]) -> StoredTensor:
        """A tensor of a type without storages of its own: (storage, ..., dtype, metadata) with a storage of bytes."""
        dtype = arguments[6] if len(arguments) > 6 else None
        if not isinstance(dtype, str):
            raise _unknown("a tensor")
        return dataclasses.replace(self._tensor(arguments), dtype=dtype)


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
