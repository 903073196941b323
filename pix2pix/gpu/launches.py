"""Launches whose threads go over elements, and memory cut into aligned buffers."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from .jit import SIMULATED

THREADS, MOST_BLOCKS = (4, 2) if SIMULATED else (256, 4096)
ALIGNED = 64  # floats


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
