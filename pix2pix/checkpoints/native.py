"""safetensors files: this project's own format, and PyTorch state dicts that somebody converted to safetensors.

The project's file has the canonical tensors (:mod:`...model.generator`) under their own names, and one entry of
metadata, ``pix2pix``: the JSON of {"version": 1, "generator": Generator.to_dict()}. Where the generator has a palette
(:mod:`...model.palette`), it is a second one, ``palette``. With dtype float16 the kernels take half the space; biases
and norms, which take little, stay float32.

The format: https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..atomic import write_atomically
from ..errors import CheckpointError
from ..model.generator import Generator
from ..model.palette import Palette, described, palette_of
from .model_file import ModelFile
from .pytorch import from_tensors
from .sample import Sample
from .tensors import FLOAT_TYPES, Stored, StoredTensor, Unread, check_precision
from .text import entry, listing, one_generator, read_json, shown

FORMAT_VERSION = 1
_ENTRY = "pix2pix"
_PALETTE = "palette"
_METADATA = "__metadata__"
_MAX_SIZE = 1 << 16  # pixels
_MAX_HEADER = 2 << 20  # bytes; a U-Net of 8 levels takes some 15,000
_MAX_RANK = 8
_MAX_REASON = 500
# Number types in the file -> (name here, bytes). Types that are not in the table keep their name and cannot be read.
_DTYPES = {
    "F64": ("float64", 8), "F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2), "I64": ("I64", 8),
    "I32": ("I32", 4), "I16": ("I16", 2), "I8": ("I8", 1), "U8": ("U8", 1), "BOOL": ("BOOL", 1),
    "F8_E4M3": ("float8_e4m3", 1), "F8_E5M2": ("float8_e5m2", 1),
}  # fmt: skip


def recognises(sample: Sample) -> bool:
    """Whether this is a safetensors file: a length below 2**32, then JSON."""
    return sample.start[4:9] == b"\0\0\0\0{"


def read(file: ModelFile, key: str | None) -> Unread:
    """Read a safetensors file. ``key`` picks one of several generators in a PyTorch state dict.

    Raises CheckpointError.
    """
    metadata, tensors = _described(file)
    if _ENTRY not in metadata:
        return from_tensors(tensors, key, "PyTorch state dict, safetensors", file.budget)
    one_generator(key)
    generator, stored = _read_own(tensors, metadata[_ENTRY])
    return dataclasses.replace(generator, palette=_palette(metadata)), stored


# -- the header -----------------------------------------------------------------------------------------------


def _described(file: ModelFile) -> tuple[Mapping[str, Any], dict[str, StoredTensor]]:
    """The metadata of the file and its tensors, by their names in alphabetical order."""
    (length,) = struct.unpack("<Q", file.read(0, 8))
    if _MAX_HEADER < length <= file.size:
        raise CheckpointError(
            f"the safetensors header has {length} bytes, more than the {_MAX_HEADER} allowed: it has long metadata; "
            f"save the tensors once more without it"
        )
    header = read_json(file.read(8, length), "the safetensors header")
    metadata = header.pop(_METADATA, {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict):
        raise CheckpointError("the safetensors header is no description of tensors: the file is damaged")
    data = file.part(8 + length, file.size - 8 - length)
    places = {name: _place(name, header[name]) for name in sorted(header)}
    position = 0
    for begin, end in sorted((begin, end) for _, _, begin, end in places.values()):
        file.budget.spend()
        if begin != position:
            raise CheckpointError("the tensors of the safetensors file overlap or leave gaps: the file is damaged")
        position = end
    if position != data.size:
        raise CheckpointError(
            f"the safetensors file is damaged or cut off (its tensors take {position} bytes, it has {data.size}): copy "
            f"it again"
        )
    return metadata, {
        name: StoredTensor(shape, dtype, partial(data.numbers, begin, dtype, shape))
        for name, (dtype, shape, begin, _) in places.items()
    }


def _place(name: str, described: Any) -> tuple[str, tuple[int, ...], int, int]:
    """(number type, shape, first byte, byte after the last) of a tensor."""
    owner = f"tensor {shown(name)} of the safetensors header"
    dtype = entry(described, "dtype", str, owner)
    shape = entry(described, "shape", list, owner)
    offsets = entry(described, "data_offsets", list, owner)
    if not (len(shape) <= _MAX_RANK and len(offsets) == 2 and all(_is_size(n) for n in (*shape, *offsets))):
        raise CheckpointError(f"{owner} has no sound shape and place: the file is damaged")
    begin, end = offsets
    name_here, item_size = _DTYPES.get(dtype, (dtype, 0))
    if end < begin or (item_size and end - begin != math.prod(shape) * item_size):
        raise CheckpointError(f"{owner} has {end - begin} bytes for {shown(shape)} numbers of {dtype}: it is damaged")
    return name_here, tuple(shape), begin, end


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**48


# -- this project's own files ---------------------------------------------------------------------------------


def _read_own(found: Stored, text: Any) -> Unread:
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
        reason = str(error)[:_MAX_REASON]
        raise CheckpointError(f"the generator's description makes no sense ({reason}): the file is damaged") from None
    check_precision(found.values())
    needed = generator.tensors()
    allowed = {name: shape for layer in generator.layers for name, shape in layer.tensors("running").items()}
    problems = [f"missing {name} {shape}" for name, shape in needed.items() if name not in found]
    for name, tensor in found.items():
        if name not in allowed:
            problems.append(f"surplus {shown(name)} {shown(tensor.shape)}")
        elif tensor.shape != allowed[name]:
            problems.append(f"{name} has shape {shown(tensor.shape)}, expected {allowed[name]}")
        elif tensor.dtype not in FLOAT_TYPES:
            problems.append(f"{name} has dtype {tensor.dtype}, expected float32 or float16")
    if problems:
        raise CheckpointError(f"the tensors don't fit the generator ({len(problems)} problems):{listing(problems)}")
    return generator, dict(found)


def _palette(metadata: Mapping[str, Any]) -> Palette:
    if _PALETTE not in metadata:
        return ()
    try:
        return palette_of(read_json(str(metadata[_PALETTE]).encode("utf-8", "replace"), "the palette"))
    except ValueError as error:
        raise CheckpointError(str(error)) from None


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
        raise ValueError(f"it halves the image more often than one of {_MAX_SIZE} pixels can be")
    generator.check_size(generator.size, generator.size)
    shapes = generator.shapes(generator.multiple, generator.multiple)
    for layer in generator.layers:
        if len({shapes[source.layer][:2] for source in layer.inputs}) > 1 or min(shapes[layer.name]) < 1:
            raise ValueError(f"{layer.name} joins maps of different sizes, or has none left")


def write(
    path: Path, generator: Generator, weights: Mapping[str, np.ndarray], dtype: Literal["float32", "float16"]
) -> None:
    """Write a model to ``path``; see :func:`pix2pix.checkpoints.write`."""
    from safetensors.numpy import save

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
    metadata = {_ENTRY: description}
    if generator.palette:
        metadata[_PALETTE] = json.dumps(described(generator.palette))
    write_atomically(path, save(tensors, metadata=metadata))
