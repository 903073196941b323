"""Launches of kernels whose threads go over elements."""

from __future__ import annotations

from typing import Any

from .jit import SIMULATED

THREADS, MOST_BLOCKS = (4, 2) if SIMULATED else (256, 4096)


def launch_over(kernel: Any, stream: Any, count: int, *arguments: Any) -> None:
    """Launch a kernel whose threads go over ``count`` elements in steps of the grid."""
    kernel[min(-(-count // THREADS), MOST_BLOCKS), THREADS, stream](*arguments)
