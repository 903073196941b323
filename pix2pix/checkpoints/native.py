"""safetensors files: this project's own format, and PyTorch state dicts that somebody converted to safetensors.

The project's file has the canonical tensors of :mod:`..generator` under their own names, and one entry of metadata,
``pix2pix``: the JSON of {"version": 1, "generator": Generator.to_dict()}. With dtype float16 the kernels are halved in
size; biases and norms, which weigh nothing, stay float32.

The safetensors library checks that every tensor lies within the file and that they cover it without overlap. It takes
headers of up to 100 MB and names that occur twice, so the header is looked at here before.

Tensors of float32 are not copied: each array is a mapping of its own part of the file, which lasts as long as the
array. A model file is replaced as :func:`write` does, by renaming another one, and not written into while it is in use.

The format: https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..atomic import write_atomically
from ..errors import CheckpointError
from ..model.generator import Generator
from .common import listing, read_json, shown, to_float32
from .pytorch import state_dict as pytorch

FORMAT_VERSION = 1
_ENTRY = "pix2pix"
_MAX_SIZE = 1 << 16  # pixels
_MAX_HEADER = 1 << 20  # a U-Net of 8 levels takes some 15,000 bytes
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16"}  # in the file little-endian


def looks_like(start: bytes) -> bool:
    """Whether a file that begins with these bytes is a safetensors file: a length below 2**32, then JSON."""
    return start[4:9] == b"\0\0\0\0{"


def read(path: Path, key: str | None) -> tuple[Generator, dict[str, np.ndarray]]:
    """Read a safetensors file. ``key`` picks one of several generators in a PyTorch state dict.

    Raises CheckpointError.
    """
    metadata, tensors = _described(path)
    if _ENTRY not in metadata:
        return pytorch.from_tensors(tensors, key, path.stat().st_size, "PyTorch state dict, safetensors")
    if key is not None:
        raise CheckpointError(f"got key {key!r}, but this format holds one generator: leave the key out")
    return _read_own(tensors, metadata[_ENTRY])


def _described(path: Path) -> tuple[Mapping[str, Any], dict[str, _Tensor]]:
    """The metadata of the file and its tensors, once they are known to be sound, and the header to be short."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
        if length > _MAX_HEADER:
            raise CheckpointError(
                f"the safetensors header claims {length} bytes, more than the {_MAX_HEADER} allowed: damaged file"
            )
        header = read_json(file.read(length), "the safetensors header")
    metadata = header.pop("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict):
        raise CheckpointError("the safetensors header is no description of tensors: the file is damaged")
    try:
        with safe_open(path, framework="numpy"):
            pass  # opening it checks it
    except SafetensorError as error:
        raise CheckpointError(f"the safetensors file is damaged or cut off ({error}): copy it again") from None
    return metadata, {name: _Tensor.of(path, 8 + length, header[name]) for name in sorted(header)}


def _read_own(found: Mapping[str, _Tensor], text: Any) -> tuple[Generator, dict[str, np.ndarray]]:
    description = read_json(str(text).encode("utf-8", "replace"), "the generator's description")
    version = description.get("version") if isinstance(description, dict) else None
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"the file has version {shown(version)} of the format, this program reads version {FORMAT_VERSION}: "
            f"update pix2pix, or convert the original model once more"
        )
    try:
        generator = Generator.from_dict(description.get("generator"))
        _check_runnable(generator)
    except (ValueError, TypeError, OverflowError) as error:
        raise CheckpointError(f"the generator's description makes no sense ({error}): the file is damaged") from None
    needed = generator.tensors()
    allowed = {name: shape for layer in generator.layers for name, shape in layer.tensors("running").items()}
    problems = [f"missing {name} {shape}" for name, shape in needed.items() if name not in found]
    for name, tensor in found.items():
        if name not in allowed:
            problems.append(f"surplus {shown(name)} {shown(tensor.shape)}")
        elif tensor.shape != allowed[name]:
            problems.append(f"{name} has shape {shown(tensor.shape)}, expected {allowed[name]}")
        elif tensor.dtype not in ("float32", "float16"):
            problems.append(f"{name} has dtype {tensor.dtype}, expected float32 or float16")
    if problems:
        raise CheckpointError(f"the tensors don't fit the generator ({len(problems)} problems):{listing(problems)}")
    return generator, {name: tensor.read() for name, tensor in found.items()}


def _check_runnable(generator: Generator) -> None:
    """Raise ValueError unless maps that are joined have the same size and the other fields make sense."""
    if type(generator.size) is not int or not isinstance(generator.origin, str):
        raise ValueError("size or origin has the wrong type")
    if type(generator.output_scale) not in (int, float) or not 0 < generator.output_scale < 1e6:
        raise ValueError("output_scale is no positive number")
    norms = [layer.norm for layer in generator.layers if layer.norm]
    if not all(type(norm.eps) in (int, float) and norm.eps <= 1 and type(norm.affine) is bool for norm in norms):
        raise ValueError("a norm's eps is no number from 0 to 1, or its affine no truth value")
    if generator.multiple > _MAX_SIZE:
        raise ValueError(f"it halves the picture more often than one of {_MAX_SIZE} pixels can be")
    generator.check_size(generator.size, generator.size)
    shapes = generator.shapes(generator.multiple, generator.multiple)
    for layer in generator.layers:
        if len({shapes[source.layer][:2] for source in layer.inputs}) > 1 or min(shapes[layer.name]) < 1:
            raise ValueError(f"{layer.name} joins maps of different sizes, or has none left")


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor of a sound safetensors file, not read yet: where it begins (byte of the file), and what it is."""

    path: Path
    begin: int
    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, path: Path, data: int, entry: Mapping[str, Any]) -> _Tensor:
        dtype = entry["dtype"]
        return cls(path, data + entry["data_offsets"][0], tuple(entry["shape"]), _DTYPES.get(dtype, dtype))

    def read(self) -> np.ndarray:
        """The numbers as a float32 array: mapped, or copied if their type is another. Changes don't reach the file."""
        dtype = np.dtype(self.dtype).newbyteorder("<")
        return to_float32(np.asarray(np.memmap(self.path, dtype, "c", self.begin, self.shape)), self.dtype)


def write(
    path: Path, generator: Generator, weights: Mapping[str, np.ndarray], dtype: Literal["float32", "float16"]
) -> None:
    """Write a model to ``path``, whole or not at all; see :func:`pix2pix.checkpoints.write`."""
    if dtype not in ("float32", "float16"):
        raise ValueError(f"got dtype {dtype!r}, expected float32 or float16")
    generator.check_weights(weights)
    tensors = {}
    for name, array in weights.items():
        small = dtype == "float16" and name.endswith(".kernel")
        with np.errstate(over="ignore"):
            tensors[name] = np.ascontiguousarray(array, np.float16 if small else np.float32)
        if not np.isfinite(tensors[name]).all():
            raise ValueError(f"{name} holds numbers that {dtype} cannot: it must be finite; try dtype float32")
    description = json.dumps({"version": FORMAT_VERSION, "generator": generator.to_dict()}, separators=(",", ":"))
    write_atomically(path, save(tensors, metadata={_ENTRY: description}))
