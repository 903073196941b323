"""Readers of trained models: ``read(path)`` finds out what the file is by its content, never by its name.

One module per format: :mod:`.pytorch.state_dict`, :mod:`.keras.model`, :mod:`.tensorflow.checkpoint`, :mod:`.tfjs`, :mod:`.pict`, :mod:`.course`,
and :mod:`.native`, which is this project's own and the only one that is written. Files are untrusted: no code in them
is executed, lengths are compared with the file's before anything is allocated, and whatever is wrong becomes a
:class:`CheckpointError`.
"""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from ..errors import CheckpointError
from ..model.generator import Generator
from .common import check_finite, inside, shown

__all__ = ["CheckpointError", "read", "write"]

_MAX_ENTRIES = 1000
_STATISTICS = (".mean", ".variance")
_LFS_POINTER = "this is a Git LFS pointer, not the model itself: run 'git lfs pull' in its repository"
_Kind = Literal["pytorch", "keras", "tfjs", "pict", "course", "safetensors", "tensorflow", "saved_model"]
_KNOWN = (
    "a PyTorch state dict (.pth), a Keras model (.keras, .h5), a TensorFlow checkpoint, a TensorFlow.js folder, "
    "a .pict, a course .bin or this project's .safetensors"
)


def read(path: str | os.PathLike[str], *, key: str | None = None) -> tuple[Generator, dict[str, np.ndarray]]:
    """Read a trained generator: the network and its canonical weights.

    ``path`` is a file of any supported format, a folder that holds one, or the prefix of a TensorFlow checkpoint.
    ``key`` picks one of several generators in a PyTorch file or a checkpoint. The weights are C-contiguous float32
    arrays named ``"<layer>.<part>"``: kernels (4,4,in,out) for convolutions and (4,4,out,in) for transposed ones, bias,
    gamma, beta and, where the file has any of use, mean and variance, each (filters,).

    Raises CheckpointError for a file that is missing, damaged, or no generator that can be read; it says what to do.
    """
    path = Path(path)
    try:
        generator, weights = _read(path, key)
        check_finite(weights)
        generator = _with_usable_statistics(generator, weights)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
    return generator, weights


def write(
    path: str | os.PathLike[str],
    generator: Generator,
    weights: Mapping[str, np.ndarray],
    dtype: Literal["float32", "float16"] = "float32",
) -> None:
    """Write a model in this project's safetensors format, which :func:`read` reads back fastest.

    ``dtype`` float16 stores the kernels in half the space; biases and norms stay float32. The file appears whole or
    not at all: it is written under a temporary name beside ``path``, then renamed. Makes the folder if need be.

    Raises ValueError for weights that don't fit the generator or that the dtype cannot hold, OSError if the file
    cannot be written.
    """
    from . import native

    native.write(Path(path), generator, weights, dtype)


def _with_usable_statistics(generator: Generator, weights: Mapping[str, np.ndarray]) -> Generator:
    """The generator under image statistics where the stored ones, which it would use, are those from before training.

    Programs that train without updating the moving averages leave means of 0 and variances of 1 in the file, and run
    the model with the statistics of the picture.
    """
    stored = [(name.endswith(".variance"), array) for name, array in weights.items() if name.endswith(_STATISTICS)]
    if generator.statistics == "image" or not stored or not all((array == initial).all() for initial, array in stored):
        return generator
    remark = "image statistics used: the moving averages in the file were never updated (means of 0, variances of 1)"
    generator = generator.with_statistics("image")
    return dataclasses.replace(generator, remarks=(*generator.remarks, remark))


def _read(path: Path, key: str | None) -> tuple[Generator, dict[str, np.ndarray]]:
    """Choose the reader by content."""
    from . import course, native, pict, tfjs
    from .keras import model as keras
    from .pytorch import state_dict as pytorch
    from .tensorflow import checkpoint as tensorflow
    from .tensorflow import saved_model

    path = tensorflow.index_of(path) or path
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, ValueError):
        raise CheckpointError("there is no such file or folder") from None
    if stat.S_ISDIR(mode):
        path = _model_in(path)
    elif not stat.S_ISREG(mode):
        raise CheckpointError("this is neither a file nor a folder: expected a model")
    kind = _sniff(path)
    if kind == "pytorch":
        return pytorch.read(path, key)
    if kind == "safetensors":
        return native.read(path, key)
    if kind == "tensorflow":
        return tensorflow.read(path, key)
    if kind == "saved_model":
        return saved_model.read(path, key)
    if key is not None:
        raise CheckpointError(f"got key {shown(key)}, but this format holds one generator: leave the key out")
    return {"keras": keras, "tfjs": tfjs, "pict": pict, "course": course}[kind].read(path)


def _model_in(folder: Path) -> Path:
    """The one model among the files of a folder: the one that it names, or the only one."""
    from . import tfjs
    from .tensorflow import checkpoint as tensorflow
    from .tensorflow import saved_model

    named = inside(folder, tfjs.MODEL) or inside(folder, saved_model.MODEL) or tensorflow.latest(folder)
    if named is not None:
        return named
    found, pointers = [], []
    with os.scandir(folder) as entries:
        for number, entry in enumerate(entries):
            if number == _MAX_ENTRIES:
                raise CheckpointError(f"the folder holds more than {_MAX_ENTRIES} files: give the model file itself")
            try:
                if file := inside(folder, entry.name):
                    _sniff(file)
                    found.append(entry.name)
            except CheckpointError as error:
                pointers += [entry.name] * (str(error) == _LFS_POINTER)
    if len(found) == 1:
        return folder / found[0]
    if found:
        raise CheckpointError(
            f"the folder holds {len(found)} models, give one of them: {', '.join(sorted(found)[:20])}"
        )
    if pointers:
        raise CheckpointError(f"of {pointers[0]} in the folder: {_LFS_POINTER}")
    raise CheckpointError(f"the folder holds no model: expected {_KNOWN}")


def _sniff(path: Path) -> _Kind:
    """What a file is by its first and last bytes and its length. Raises CheckpointError for what cannot be read."""
    from . import course, native, pict, tfjs
    from .containers import hdf5, sstable
    from .keras import model as keras
    from .pytorch import torchfile
    from .tensorflow import bundle, saved_model

    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(512)
        file.seek(-min(size, len(sstable.MAGIC)), os.SEEK_END)
        end = file.read()
    if not start:
        raise CheckpointError("the file is empty: the download or the copy failed")
    if start.startswith(hdf5.START) or (start.startswith(b"PK\x03\x04") and start[30:].startswith(keras.MEMBERS)):
        return "keras"
    if start.startswith((b"PK\x03\x04", torchfile.LEGACY_START)):
        return "pytorch"
    if native.looks_like(start):
        return "safetensors"
    if tfjs.looks_like(start):
        return "tfjs"
    if end == sstable.MAGIC or path.name.endswith(bundle.SUFFIX):  # the name still tells when the end is cut off
        return "tensorflow"
    if saved_model.looks_like(start):
        return "saved_model"
    if pict.looks_like(start):
        return "pict"
    if course.ngf_of(size) is not None:
        return "course"
    raise CheckpointError(_explanation(start, size))


def _explanation(start: bytes, size: int) -> str:
    """What a file that is no readable model is instead, and what to do."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"version https://git-lfs"):
        return _LFS_POINTER
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "this is a web page, not a model: the download led to a login, warning or error page; download it again"
    if text.startswith(b"{"):
        return "this is JSON, but does not begin as the model.json of a TensorFlow.js model does"
    if start.startswith(b"\x80"):
        return "this is a pickle that torch.save did not write: save the model with torch.save(net.state_dict(), ...)"
    if b"ustar" in start:
        return "this is a tar archive: unpack it, or if PyTorch before 0.2 wrote it, save it again with a later version"
    return f"no known kind of model (a file of {size} bytes): expected {_KNOWN}"
