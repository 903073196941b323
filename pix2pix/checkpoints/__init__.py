"""Readers of trained models: ``read(path)`` finds out what a file is by its content, never by its name.

Each format is a module or folder here, and a row of the table in :mod:`.formats`. Several formats share the containers
in :mod:`.containers`. A reader returns the network and its weights unread (:mod:`.tensors`); :func:`read` then reads
them. The project's own format, :mod:`.native`, is the only one that is written.

Files are untrusted. No code in them is executed, no file outside the model's folder is read, lengths are compared with
the file's before anything is allocated (:mod:`.model_file`), and the size of the file bounds the work (:mod:`.budget`).
Whatever is wrong becomes a :class:`CheckpointError`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np

from ..errors import CheckpointError
from ..model.generator import Generator

__all__ = ["CheckpointError", "files_of", "read", "write"]

_STATISTICS = (".mean", ".variance")


def read(path: str | os.PathLike[str], *, key: str | None = None) -> tuple[Generator, dict[str, np.ndarray]]:
    """Read a trained generator: the network and its canonical weights.

    ``path`` is a file of any supported format, a folder that holds one, or the prefix of a TensorFlow checkpoint.
    ``key`` picks one of several generators in a PyTorch file or a checkpoint. The weights are C-contiguous float32
    arrays named ``"<layer>.<part>"``: kernels (4,4,in,out) for convolutions and (4,4,out,in) for transposed ones, bias,
    gamma, beta and, where the file has any of use, mean and variance, each (filters,).

    Raises CheckpointError for a file that is missing, damaged, or no generator that can be read; it says what to do.
    """
    from .budget import Budget
    from .formats import locate
    from .model_file import opened
    from .tensors import read_all

    with _named(path):
        located = locate(Path(path))
        with opened(located.path, Budget()) as file:
            generator, stored = located.format.read(file, key)
            weights = read_all(stored)
        return _with_usable_statistics(generator, weights), weights


def files_of(path: str | os.PathLike[str]) -> list[Path]:
    """All files that :func:`read` reads for ``path``, the main file first. Raises CheckpointError as it does."""
    from .formats import locate

    with _named(path):
        located = locate(Path(path))
        return located.format.files(located.path)


def write(
    path: str | os.PathLike[str],
    generator: Generator,
    weights: Mapping[str, np.ndarray],
    dtype: Literal["float32", "float16"] = "float32",
) -> None:
    """Write a model in this project's safetensors format, which :func:`read` reads back fastest.

    ``dtype`` float16 stores the kernels in half the space; biases and norms stay float32. The file appears whole or
    not at all. Makes the folder if need be.

    Raises ValueError for weights that don't fit the generator or that the dtype cannot hold, OSError if the file
    cannot be written.
    """
    from . import native

    native.write(Path(path), generator, weights, dtype)


@contextmanager
def _named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Errors of reading in the block as CheckpointError that names the path."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{os.fspath(path)}: {error}") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {os.fspath(path)}: {error.strerror or error}") from None
    except MemoryError:
        raise CheckpointError(f"cannot read {os.fspath(path)}: there is not enough memory for its weights") from None


def _with_usable_statistics(generator: Generator, weights: Mapping[str, np.ndarray]) -> Generator:
    """The generator under image statistics, if it uses stored ones that training has never updated.

    Programs that train without updating the moving averages leave means of 0 and variances of 1 in the file, and run
    the model with the statistics of the image.
    """
    stored = [(name.endswith(".variance"), array) for name, array in weights.items() if name.endswith(_STATISTICS)]
    if generator.statistics == "image" or not stored or not all((array == initial).all() for initial, array in stored):
        return generator
    remark = "image statistics used: the moving averages in the file were never updated (means of 0, variances of 1)"
    generator = generator.with_statistics("image")
    return dataclasses.replace(generator, remarks=(*generator.remarks, remark))
