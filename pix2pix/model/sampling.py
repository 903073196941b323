"""Which input pixels each output pixel of a convolution reads, in both directions, with every kind of padding.

A convolution of stride s, kernel k and padding p computes ``y[i] = sum over a of x[s*i + a - p] @ k[a]`` along each
axis. A transposed one computes the adjoint, ``y[s*i + a - p] += k[a] @ x[i]``. Written for the output, that is s
convolutions of stride 1 along each axis, the *phases*: output ``y[s*i + r]`` sums the taps a with ``(r + p - a) % s
== 0``, and reads ``x[i + (r + p - a) // s]``. The positions i form the *base grid*: of the output's size for a
convolution, of the input's for a transposed one.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

PaddingMode = Literal["zeros", "reflect", "replicate", "uncounted"]  # the last: an average leaves the padding out
Upsampling = Literal["nearest", "bilinear", "bilinear-corners"]  # the last with align_corners


@dataclass(frozen=True, slots=True)
class Tap:
    """One term of a phase's sum: kernel[ky, kx] times the input at (step * i + dy, step * j + dx)."""

    ky: int
    kx: int
    dy: int
    dx: int


@dataclass(frozen=True, slots=True)
class Phase:
    """The outputs (scale * i + row, scale * j + column) for every (i, j) of the base grid."""

    row: int
    column: int
    taps: tuple[Tap, ...]


@dataclass(frozen=True, slots=True)
class Sampling:
    """The geometry of one convolution. Sizes in pixels.

    ``padding`` is (top, left, bottom, right); of a transposed convolution it is what the output loses. ``upsample``
    enlarges the input before it is padded. ``output_padding`` adds rows and columns after a transposed convolution's
    output, as in PyTorch.
    """

    kernel: int
    stride: int
    padding: tuple[int, int, int, int]
    padding_mode: PaddingMode = "zeros"
    transposed: bool = False
    output_padding: int = 0
    upsample: int = 1
    upsample_mode: Upsampling = "nearest"

    @property
    def step(self) -> int:
        """Input pixels from one position of the base grid to the next."""
        return 1 if self.transposed else self.stride

    @property
    def scale(self) -> int:
        """Output pixels from one position of the base grid to the next."""
        return self.stride if self.transposed else 1

    @property
    def counts_padding(self) -> bool:
        """Whether a fixed filter sums the padding too: an average may leave it out."""
        return self.padding_mode != "uncounted"

    def output_size(self, h: int, w: int) -> tuple[int, int]:
        """(H, W) of the output for an h x w input."""
        top, left, bottom, right = self.padding
        if self.transposed:
            extra = self.kernel + self.output_padding
            return (h - 1) * self.stride + extra - top - bottom, (w - 1) * self.stride + extra - left - right
        h, w = h * self.upsample, w * self.upsample
        return (h + top + bottom - self.kernel) // self.stride + 1, (w + left + right - self.kernel) // self.stride + 1

    def base_grid(self, h: int, w: int) -> tuple[int, int]:
        """(H, W) of the base grid for an h x w input."""
        return (h, w) if self.transposed else self.output_size(h, w)

    def fits(self, h: int, w: int) -> bool:
        """Whether an h x w input can be padded so: a reflection needs more pixels than it mirrors."""
        if self.padding_mode != "reflect":
            return True
        top, left, bottom, right = self.padding
        return max(top, bottom) < h * self.upsample and max(left, right) < w * self.upsample

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases by row, then column, each with its taps in the order of what they read."""
        top, left = self.padding[:2]
        rows, columns = self._axis(top), self._axis(left)
        return tuple(
            Phase(r, c, tuple(Tap(ky, kx, dy, dx) for (dy, ky), (dx, kx) in itertools.product(rows[r], columns[c])))
            for r in rows
            for c in columns
        )

    def _axis(self, before: int) -> dict[int, list[tuple[int, int]]]:
        """For each phase along one axis: pairs (offset in the input, index in the kernel), by offset."""
        if not self.transposed:
            return {0: [(a - before, a) for a in range(self.kernel)]}
        return {
            r: sorted(
                ((r + before - a) // self.stride, a) for a in range(self.kernel) if (r + before - a) % self.stride == 0
            )
            for r in range(self.stride)
        }
