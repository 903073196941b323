"""The windows of products: which pixels each row reads, for a convolution or the phases of a transposed one."""

from __future__ import annotations

from collections.abc import Callable

from ..model.sampling import Phase, Sampling
from .kernels.parameters import Axis, Window


def square(taps: int, stride: int = 1, first: int = 0) -> Window:
    """The window of a convolution with taps x taps taps, of which the first reads pixel (first, first)."""
    axis = Axis(stride, taps, first, taps, first)
    return Window(axis, axis, taps * taps)


def window_of(sampling: Sampling, border: int = 0) -> Window:
    """The window of a convolution's phases over maps with a border."""
    phases = sampling.phases  # the last is the second along both axes, or the only one

    def axis(offsets: Callable[[Phase], set[int]]) -> Axis:
        (taps, first), (taps2, first2) = ((len(found), min(found)) for found in map(offsets, (phases[0], phases[-1])))
        return Axis(sampling.step, taps, first + border, taps2, first2 + border)

    rows, columns = (
        axis(lambda phase: {tap.dy for tap in phase.taps}),
        axis(lambda phase: {tap.dx for tap in phase.taps}),
    )
    return Window(rows, columns, max(len(phase.taps) for phase in phases))


ONE_PIXEL = square(1)
