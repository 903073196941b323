"""From tensors of a state dict to canonical ones: one way for all families.

A family says where the tensors of each layer are (:class:`Place`) and which network they make. This module sees in
the names what kind of norm the network has, and in the shapes how wide its layers are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from ...errors import CheckpointError
from ...model.generator import Generator, Norm
from ..tensors import MAX_CHANNELS, Stored, StoredTensor, matched
from ..text import listing

_NORM_PARTS = {"gamma": "weight", "beta": "bias", "mean": "running_mean", "variance": "running_var"}
_HWIO = (2, 3, 1, 0)  # from OIHW; from IOHW, which transposed convolutions have, to HWOI
_UNTRACKED = (
    "the norms have parameters, but no running statistics and no biases before them: they are taken to be BatchNorm "
    "without running statistics. If the program used GroupNorm, the images differ from its own"
)


class Place(NamedTuple):
    """What the names of a layer's tensors begin with: those of its convolution, and of its norm if it has one."""

    convolution: str
    norm: str = ""


Places = Mapping[str, Place]  # by the name of the layer


class Norms(NamedTuple):
    """What a state dict shows of the norms. ``running``: it holds running statistics of use.

    ``unused`` are names of tensors that programs store and never use.
    """

    norm: Norm | None
    running: bool
    unused: frozenset[str] = frozenset()
    remarks: tuple[str, ...] = ()


def norms_in(tensors: Stored, places: Places, *, instance: bool) -> Norms:
    """The norms, where ``instance`` says that norms without parameters are InstanceNorm.

    The biases before them show that in programs that give biases to the convolutions before an InstanceNorm only.
    Without parameters an InstanceNorm shows by nothing else, and statistics beside it are unused: old versions of
    PyTorch stored them all the same. Without biases, statistics show a BatchNorm.
    """
    names = {f"{place.norm}{part}" for place in places.values() if place.norm for part in _NORM_PARTS.values()}
    affine = any(name in tensors for name in names if name.endswith((".weight", ".bias")))
    stored = any(name in tensors for name in names if "running" in name)
    norm = Norm(affine=affine) if affine or instance or stored else None
    running = stored and (affine or not instance)
    return Norms(
        norm,
        running,
        frozenset() if affine or running else frozenset(names),
        (_UNTRACKED,) if affine and not stored and not instance else (),
    )


def running_names(places: Places) -> frozenset[str]:
    """The names of all running statistics."""
    parts = ("running_mean", "running_var")
    return frozenset(f"{place.norm}{part}" for place in places.values() if place.norm for part in parts)


def biased(tensors: Stored, places: Iterable[Place]) -> bool:
    """Whether most of some convolutions have a bias; one that is missing or surplus will be listed."""
    found = [f"{place.convolution}bias" in tensors for place in places]
    return 2 * sum(found) >= len(found)


def extent(tensors: Stored, name: str, axis: int) -> int:
    """One extent of a kernel, or 1 if it is missing or odd, so that the list of all problems can still be made."""
    shape = tensors[name].shape if name in tensors else ()
    return shape[axis] if len(shape) == 4 and 0 < shape[axis] <= MAX_CHANNELS else 1


def counted(blocks: int) -> str:
    """A number of blocks in words."""
    return f"{blocks} block{'s' * (blocks != 1)}"


def canonical(
    tensors: Stored,
    generator: Generator,
    places: Places,
    norms: Norms,
    network: str,
    filters: Mapping[str, np.ndarray] | None = None,
) -> dict[str, StoredTensor]:
    """The generator's tensors by their canonical names, unread.

    ``filters`` are fixed filters (C,1,kh,kw) that the file must hold, by their names there. Raises CheckpointError that
    lists all tensors that don't fit, and calls the network ``network``.
    """
    wanted: dict[str, tuple[str, tuple[int, ...]]] = {}
    for layer, (convolution, norm) in places.items():
        for name, shape in generator[layer].tensors("running" if norms.running else "image").items():
            part = name.rpartition(".")[2]
            if part == "kernel":
                wanted[f"{convolution}weight"] = name, (shape[3], shape[2], shape[0], shape[1])
            elif part == "bias":
                wanted[f"{convolution}bias"] = name, shape
            else:
                wanted[f"{norm}{_NORM_PARTS[part]}"] = name, shape
    filters = filters or {}
    wanted |= {name: (name, numbers.shape) for name, numbers in filters.items()}
    known = wanted.keys() | norms.unused
    surplus = [name for name in tensors if name not in known and not name.endswith("num_batches_tracked")]
    found = matched(wanted, tensors, surplus, network, str)
    _check_filters({name: found.pop(name) for name in filters}, filters, network)
    return {name: tensor.transposed(_HWIO) if len(tensor.shape) == 4 else tensor for name, tensor in found.items()}


def _check_filters(found: Stored, expected: Mapping[str, np.ndarray], network: str) -> None:
    wrong = [name for name in found if not np.allclose(found[name].read(), expected[name], rtol=0, atol=1e-3)]
    if wrong:
        raise CheckpointError(
            f"the file holds other filters than {network} has (their numbers differ): its network was changed"
            f"{listing(wrong)}"
        )
