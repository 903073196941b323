"""Tensors of model files: unread ones, and how they are matched with what a network needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from ..errors import CheckpointError
from ..model.generator import Generator
from .text import listing, shown

FLOAT_TYPES = ("float64", "float32", "float16", "bfloat16")
MAX_CHANNELS = 65536


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of a model file whose numbers have not been read.

    ``shape`` is in the file's layout. ``dtype`` names the type of the numbers in the file, e.g. ``float16``. ``load``
    returns them in that type and shape; bfloat16, which NumPy lacks, as the uint16 of its bits.
    """

    shape: tuple[int, ...]
    dtype: str
    load: Callable[[], np.ndarray] = field(repr=False, compare=False)

    def read(self) -> np.ndarray:
        """The numbers as a C-contiguous float32 array of ``shape``.

        Raises CheckpointError for numbers that are not floating point, and for a damaged file.
        """
        if self.dtype not in FLOAT_TYPES:
            raise CheckpointError(f"got a tensor of {shown(self.dtype)}, expected floating point")
        numbers = self.load()
        if self.dtype == "bfloat16":  # the upper half of a float32
            wide = np.ascontiguousarray(numbers).astype(np.uint32)
            wide <<= 16
            return wide.view(np.float32).reshape(self.shape)
        with np.errstate(over="ignore"):
            return np.require(numbers, np.float32, ["C", "A"])

    def transposed(self, axes: tuple[int, ...]) -> StoredTensor:
        """The same tensor with its axes in another order."""
        return StoredTensor(tuple(self.shape[axis] for axis in axes), self.dtype, lambda: self.load().transpose(axes))


Stored = Mapping[str, StoredTensor]
Wanted = Mapping[str, tuple[str, tuple[int, ...]]]  # name in the file -> (canonical name, shape in the file's layout)
Unread = tuple[Generator, dict[str, StoredTensor]]  # a generator and its canonical weights: what a reader returns


def matched(
    wanted: Wanted,
    found: Stored,
    surplus: Iterable[str],
    network: str = "a pix2pix U-Net",
    label: Callable[[str], str] = shown,
) -> dict[str, StoredTensor]:
    """The tensors that a network needs, by their canonical names.

    ``surplus`` are the names of tensors in the file that the network has no place for. Raises CheckpointError that
    lists all that are missing, misshapen, surplus or not floating point. It calls the network ``network`` and prints
    names of the file with ``label``.
    """
    check_precision(found[stored] for stored in wanted if stored in found)
    problems = []
    for stored, (_, shape) in wanted.items():
        if stored not in found:
            problems.append(f"missing {label(stored)} {shape}")
        elif found[stored].shape != shape:
            problems.append(f"{label(stored)} has shape {shown(found[stored].shape)}, expected {shape}")
        elif found[stored].dtype not in FLOAT_TYPES:
            problems.append(f"{label(stored)} has numbers of type {found[stored].dtype}, expected floating point")
    problems += [f"surplus {shown(name)} {shown(found[name].shape)}" for name in surplus]
    if problems:
        raise CheckpointError(
            f"the tensors are not those of {network} ({len(problems)} problems; the file is damaged, or its network "
            f"was changed):{listing(problems)}"
        )
    return {canonical: found[stored] for stored, (canonical, _) in wanted.items()}


def check_precision(tensors: Iterable[StoredTensor]) -> None:
    """Raise CheckpointError that says so if some tensors are 8-bit floating point."""
    for tensor in tensors:
        if tensor.dtype.startswith("float8"):
            raise CheckpointError(
                f"the weights are 8-bit floating point ({tensor.dtype}), whose scales are not in the file: save them "
                f"in float16, bfloat16 or float32"
            )


def read_all(stored: Stored) -> dict[str, np.ndarray]:
    """The numbers of all tensors; each is checked while it is in the processor's cache.

    Raises CheckpointError that lists all tensors with NaN or infinity, and variances below zero.
    """
    weights, problems = {}, []
    with np.errstate(over="ignore", invalid="ignore"):
        for name, tensor in stored.items():
            weights[name] = array = tensor.read()
            # A finite sum proves finite terms in one pass without a temporary; an infinite one may be overflow.
            if not (np.isfinite(array.sum()) or np.isfinite(array).all()):
                problems.append(f"{name} holds numbers that are not finite")
            elif name.endswith(".variance") and array.min() < 0:
                problems.append(f"{name} holds variances below zero")
    if problems:
        raise CheckpointError(
            f"the model is damaged, or its training diverged: take an earlier checkpoint{listing(problems)}"
        )
    return weights
