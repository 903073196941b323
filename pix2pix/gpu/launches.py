"""The walk over a generator's layers on one GPU, whatever the precision: what to compute, and in which order.

Every launch goes to one stream, in the order of the layers, so that any walk can be recorded as a graph.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from ..model.lowering import lower
from .jit import SIMULATED

THREADS, MOST_BLOCKS = (4, 2) if SIMULATED else (256, 4096)
ALIGNED = 64  # floats
MOST_IMAGES = 65535  # of a grid


class Walk:
    """The maps of n images of h x w, and the launches that fill them. Subclasses say how one layer is computed."""

    def __init__(self, weights: Any, n: int, h: int, w: int, stream: Any) -> None:
        self.weights, self.n, self.h, self.w, self.stream = weights, n, h, w, stream
        self.generator = weights.generator
        self.constants: dict[str, Any] = {}  # values of layers that are the same for all images: (h * w * channels)

    def compute(self, given: Iterable[str], wanted: Iterable[str], picture: Any) -> None:
        """Launch all that computes the layers ``wanted`` from the maps of ``given``.

        ``picture`` is where the last layer goes: (n, h, w, channels), uint8 or float32.
        """
        given = {*given}
        wanted = {name for name in wanted if name not in given}
        program = lower(self.generator)
        constants = program.unaffected(self.constants, given)
        ops = program.needed(tuple(wanted), given | constants)
        used = wanted.union(name for op in ops for name in op.reads)
        for name, value in self.constants.items():
            if name in used and name in constants:
                self.set_map(name, value, 1)
        for op in ops:
            self._compute(self.weights.ops[op.name], picture, op.name in wanted)

    def set_map(self, name: str, value: Any, images: int) -> None:
        """A layer's value from an array (images * h * w * channels) in the GPU's memory; one image stands for all."""
        raise NotImplementedError

    def _compute(self, packed: Any, picture: Any, is_wanted: bool) -> None:
        """Launch one layer. If it ``is_wanted``, its value is going to be asked for."""
        raise NotImplementedError


def launch_over(kernel: Any, stream: Any, count: int, *arguments: Any) -> None:
    """Launch a kernel whose threads go over ``count`` elements in steps of the grid."""
    kernel[min(-(-count // THREADS), MOST_BLOCKS), THREADS, stream](*arguments)


def rounded(sizes: Mapping[str, int]) -> dict[str, int]:
    """Sizes of buffers, each rounded up so that the next is aligned."""
    return {name: -(-max(size, 1) // ALIGNED) * ALIGNED for name, size in sizes.items()}


def cut(memory: Any, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Parts of one piece of memory."""
    ends = itertools.accumulate(sizes.values())
    return {name: memory[end - sizes[name] : end] for name, end in zip(sizes, ends, strict=True)}
