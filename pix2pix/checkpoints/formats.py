"""The formats of model files, and which file of which format a path means.

To add a format, write a module with the functions of :class:`Format` and add its row to :data:`FORMATS`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..errors import CheckpointError, NoGeneratorError
from . import course, keras, native, pict, pytorch, tfjs
from .budget import Budget
from .model_file import ModelFile, inside, opened
from .sample import Sample
from .tensorflow import checkpoint, saved_model
from .tensors import Unread

_MAX_ENTRIES = 1000  # of a folder
_LFS_POINTER = "this is a Git LFS pointer, not the model itself: run 'git lfs pull' in its repository"
_KNOWN = (
    "a PyTorch state dict (.pth), a TorchScript archive (.pt), a Keras model (.keras, .h5), a TensorFlow checkpoint, "
    "a TensorFlow.js folder, a .pict, a course .bin or this project's .safetensors"
)


def _nothing(path: Path) -> Path | None:
    return None


def _itself(path: Path) -> list[Path]:
    return [path]


class Format(NamedTuple):
    """One format. Its functions raise CheckpointError, or OSError where a file cannot be read."""

    recognises: Callable[[Sample], bool]
    """Whether a file has this format."""
    read: Callable[[ModelFile, str | None], Unread]
    """The generator in a file and its canonical weights, unread; the key picks one of several generators."""
    locate: Callable[[Path], Path | None] = _nothing
    """The main file of a model that a path means in another way: as a folder, or as a prefix of names."""
    files: Callable[[Path], list[Path]] = _itself
    """All files of the model with this main file."""


FORMATS = (  # the first that recognises a file reads it
    Format(keras.recognises, keras.read),  # zip archives of Keras, HDF5
    Format(pytorch.recognises, pytorch.read),  # other zip archives, and torch.save's older form
    Format(native.recognises, native.read),  # safetensors
    Format(tfjs.recognises, tfjs.read, tfjs.locate, tfjs.files),
    Format(saved_model.recognises, saved_model.read, saved_model.locate, saved_model.files),
    Format(checkpoint.recognises, checkpoint.read, checkpoint.locate, checkpoint.files),
    Format(pict.recognises, pict.read),
    Format(course.recognises, course.read),  # by the length of the file alone
)


class Located(NamedTuple):
    """The main file of a model, and its format."""

    path: Path
    format: Format


def locate(path: Path) -> Located:
    """The model that ``path`` means: a file, a folder that holds one model, or the prefix of a TensorFlow checkpoint.

    Raises CheckpointError for a path that is missing or no model, OSError if it cannot be read.
    """
    path = next(filter(None, (each.locate(path) for each in FORMATS)), path)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, ValueError):
        raise CheckpointError("there is no such file or folder") from None
    if stat.S_ISDIR(mode):
        return _only_model(path)
    if not stat.S_ISREG(mode):
        raise CheckpointError("this is neither a file nor a folder: expected a model")
    return Located(path, _format_of(path))


def _format_of(path: Path) -> Format:
    """The format of a file, by its content."""
    sample = Sample.of(path)
    for each in FORMATS:
        if each.recognises(sample):
            return each
    raise CheckpointError(_explanation(sample))


def _only_model(folder: Path) -> Located:
    """The one model among the files of a folder, or the one generator among its models."""
    found, pointers = [], []
    with os.scandir(folder) as entries:
        for number, entry in enumerate(entries):
            if number == _MAX_ENTRIES:
                raise CheckpointError(f"the folder holds more than {_MAX_ENTRIES} files: give the model file itself")
            try:
                if inside(folder, entry.name):
                    found.append(Located(folder / entry.name, _format_of(folder / entry.name)))
            except CheckpointError as error:
                pointers += [entry.name] * (str(error) == _LFS_POINTER)
    if len(found) > 1:
        found = _generators(found) or found
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(sorted(each.path.name for each in found)[:20])
        raise CheckpointError(f"the folder holds {len(found)} models, give one of them: {names}")
    if pointers:
        raise CheckpointError(f"of {pointers[0]} in the folder: {_LFS_POINTER}")
    raise CheckpointError(f"the folder holds no model: expected {_KNOWN}")


def _generators(models: list[Located]) -> list[Located]:
    """Those of some models that are generators or cannot be read, so that nothing rules out that they are."""
    budget, kept = Budget(), []
    for model in models:
        try:
            with opened(model.path, budget) as file:
                model.format.read(file, None)
        except NoGeneratorError:
            continue
        except (CheckpointError, OSError):
            pass
        kept.append(model)
    return kept


def _explanation(sample: Sample) -> str:
    """What a file that is no readable model is instead, and what to do."""
    start, text = sample.start, sample.start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
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
    return f"no known kind of model (a file of {sample.size} bytes): expected {_KNOWN}"
