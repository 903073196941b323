"""Convolutions of 8-bit integers: how weights and inputs become integers, without any calibration.

An input channel c of a layer is stored as ``q = round(x / (step * unit_c)) + zero_c``, 0 <= q <= 255, and the weights
that it meets, multiplied by ``unit_c`` beforehand, as whole numbers from -127 to 127 in units of their filter. So

    y_f = step * unit_f * sum over taps and channels of weight_fc * (q_c - zero_c) + bias_f

The units and zeros follow from the weights: a normalised channel has mean beta and standard deviation gamma in every
image, whatever it shows. Its range is taken as beta +- SPREADS * gamma through the activation, and 0 is a whole number
in it, so that padding is exact. Channels that are normalised together count as if each had been by itself. ``step`` is
one number for each image, the least with which the ranges hold all values of that image; so nothing is clipped, and
images don't depend on each other.

In Winograd's minimal filtering (:mod:`.winograd`) the transformed input becomes integers, whose ranges are the largest
that a transform can make of the input's. There each point of each tile has a ``step`` of its own, instead of the image.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np

from .generator import INPUT, Generator, Layer, Source, Weights
from .lowering import Op, lower
from .weights import fold
from .winograd import input_transform, single_stride, transformed_kernel

SPREADS = 6.0  # standard deviations on either side of the mean that a range has
LEAST_END = 1e-30  # of a range: what is smaller counts as 0, for one over it must be a float32, too
LEVELS, MOST_WEIGHT = 255, 127  # the largest integers of inputs and weights
FILTERS = 64  # whose kernels are transformed together
MOST_PRODUCTS = (2**31 - 1) // (LEVELS * MOST_WEIGHT)  # of a sum that cannot overflow 32 bits


class Range(NamedTuple):
    """The least and the largest value (C,) that each channel is expected to have."""

    low: np.ndarray
    high: np.ndarray


class Quantised(NamedTuple):
    """A layer's kernel as whole numbers, and the units of what it holds; float32, in the generator's layouts.

    Of a kernel that is transformed, all have the points in front: kernel (points, K, N) in int8, units (points, N),
    scales and zeros (points, K); K and N are those of :func:`pix2pix.model.winograd.single_stride`.
    """

    kernel: np.ndarray  # as the layer's: whole numbers from -127 to 127
    units: np.ndarray  # (filters,) of its sums
    scales: np.ndarray  # (channels,): the unit of each input channel
    zeros: np.ndarray  # (channels,): the integer that stands for 0

    @property
    def is_transformed(self) -> bool:
        """Whether it is for Winograd's minimal filtering."""
        return self.kernel.ndim == 3

    @property
    def ends(self) -> Range:
        """The values that the integers 0 and 255 stand for, by channel."""
        return Range(-self.zeros * self.scales, (np.float32(LEVELS) - self.zeros) * self.scales)

    def input_values(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """By channel: its zero, and one over its unit, over the least value and over the largest (0 for those of 0)."""
        low, high = self.ends
        return self.zeros, _inverse(self.scales), _inverse(low), _inverse(high)


def quantise_all(
    generator: Generator, weights: Weights, names: Collection[str], tile_sizes: Mapping[str, int] = {}
) -> dict[str, Quantised]:
    """The layers ``names`` of the folded generator (:func:`pix2pix.model.weights.fold`) in whole numbers.

    ``tile_sizes`` are the m of those that Winograd's F(m x m, r x r) computes.
    """
    folded, parts = fold(generator, weights)
    program, known = lower(folded), ranges(generator, weights)
    return {name: quantise(program[name], parts[f"{name}.kernel"], known, tile_sizes.get(name, 0)) for name in names}


def _inverse(x: np.ndarray) -> np.ndarray:
    return np.divide(1, x, out=np.zeros_like(x), where=x != 0)


def ranges(generator: Generator, weights: Weights) -> dict[str, Range]:
    """The range of every layer's value, before the activation of the layers that read it; from the weights alone."""
    found = {INPUT: Range(*(np.full(generator.in_channels, end, np.float64) for end in (-1.0, 1.0)))}
    for layer in generator.layers:
        found[layer.name] = _range(layer, weights, found)
    return found


def _range(layer: Layer, weights: Weights, known: Mapping[str, Range]) -> Range:
    """Mean and deviations of a layer's value; the deviations of what is added up count as independent of each other."""
    if layer.depthwise:  # a mean of what it reads, with weights that add up to 1
        return joined(layer.inputs, layer.join, known)
    mean = weights.get(f"{layer.name}.beta", np.zeros(layer.filters)).astype(np.float64)
    if layer.norm:
        spread = np.abs(weights.get(f"{layer.name}.gamma", np.ones(layer.filters))).astype(np.float64)
    else:
        mean = weights.get(f"{layer.name}.bias", mean).astype(np.float64)
        low, high = joined(layer.inputs, layer.join, known)
        squares = weights[f"{layer.name}.kernel"].astype(np.float64) ** 2
        of_channel = np.maximum(np.abs(low), np.abs(high)) / (1 if layer.inputs[0].layer == INPUT else SPREADS)
        along = (0, 1, 3) if layer.transposed else (0, 1, 2)
        spread = np.sqrt((squares * (of_channel**2 if layer.transposed else of_channel[:, None] ** 2)).sum(along))
    half = SPREADS * spread
    if layer.residual:
        low, high = known[layer.residual.layer]
        middle = (low + high) / 2
        mean = mean + np.where(middle > 0, middle, middle * layer.residual.slope)
        half = np.hypot(half, (high - low) / 2)
    return Range(mean - half, mean + half)


def joined(sources: tuple[Source, ...], join: str, known: Mapping[str, Range]) -> Range:
    """The range of the activated values that a layer reads, joined along their channels or added up."""
    parts = [activated(known[source.layer], source.slope) for source in sources]
    lows, highs = zip(*parts, strict=True)
    if join == "concat":
        return Range(np.concatenate(lows), np.concatenate(highs))
    return Range(np.sum(lows, axis=0), np.sum(highs, axis=0))


def activated(expected: Range, slope: float) -> Range:
    """The range behind a leaky ReLU. A side on which values are hardly expected still gets a standard deviation."""
    spread = (expected.high - expected.low) / (2 * SPREADS)
    low, high = (np.where(end > 0, end, end * slope) for end in expected)
    return Range(np.minimum(low, -spread * slope), np.maximum(high, spread))


def _input_units(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The units in which the integers 0 to 255 hold a range and 0, and the integers that stand for 0."""
    low, high = (np.where(np.abs(end) < LEAST_END, 0, end) for end in (np.minimum(low, 0), np.maximum(high, 0)))
    scales = (high - low) / LEVELS
    scales[scales == 0] = 1
    zeros = np.clip(np.rint(-low / scales), low < 0, LEVELS - (high > 0))  # each side has an integer
    for side, levels in ((-low, zeros), (high, LEVELS - zeros)):  # what rounding takes from either side
        scales = np.maximum(scales, np.divide(side, levels, out=np.zeros_like(side), where=levels > 0))
    return scales, zeros


def quantise(op: Op, kernel: np.ndarray, known: Mapping[str, Range], m: int = 0) -> Quantised:
    """The kernel of an operation, in whole numbers for inputs of the ranges ``known``.

    With ``m``, it is transformed for Winograd's F(m x m, r x r), and so are the ranges.
    """
    if m:
        return _quantise_transformed(op, kernel, known, m)
    scales, zeros = _input_units(*joined(op.sources, op.join, known))
    transposed = op.sampling.transposed
    largest = np.maximum(kernel.max((0, 1)), -kernel.min((0, 1)))  # over the taps
    units = ((largest.T if transposed else largest) * scales[:, None]).max(0) / MOST_WEIGHT
    units[units == 0] = 1
    factors, unit = (scales, units[:, None]) if transposed else (scales[:, None], units)
    whole = np.empty(kernel.shape, np.float32)
    for taps in np.ndindex(kernel.shape[:2]):  # float64 of all would take much memory
        whole[taps] = np.rint(kernel[taps] * factors / unit)
    return Quantised(whole, *(each.astype(np.float32) for each in (units, scales, zeros)))


def _quantise_transformed(op: Op, kernel: np.ndarray, known: Mapping[str, Range], m: int) -> Quantised:
    step, phases = op.sampling.step, op.sampling.scale**2
    low, high = (np.tile(each, step**2) for each in joined(op.sources, op.join, known))
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    taps = op.sampling.kernel // op.sampling.stride
    rows = input_transform(m + taps - 1)
    points = np.stack([np.outer(a, b).ravel() for a in rows for b in rows])  # what each sums of a tile's pixels
    positive, negative = (np.maximum(sign * points, 0).sum(1)[:, None] for sign in (1, -1))
    scales, zeros = _input_units(positive * low - negative * high, positive * high - negative * low)
    whole = np.empty((len(points), len(low), phases, op.filters), np.int8)
    units = np.empty((len(points), phases, op.filters))
    for first in range(0, op.filters, FILTERS):  # float64 of all would take much memory
        part = np.s_[..., first : first + FILTERS]
        some = kernel[:, :, first : first + FILTERS] if op.sampling.transposed else kernel[part]
        for i, point in enumerate(transformed_kernel(single_stride(op.sampling, some.astype(np.float64)), m)):
            point *= scales[i][:, None]
            unit = np.maximum(point.max(0), -point.min(0)) / MOST_WEIGHT
            unit[unit == 0] = 1
            point /= unit
            whole[i][part] = np.rint(point, out=point).reshape(len(low), phases, -1)
            units[i][part] = unit.reshape(phases, -1)
    return Quantised(
        whole.reshape(*scales.shape, -1),
        *(np.ascontiguousarray(each, np.float32) for each in (units.reshape(len(points), -1), scales, zeros)),
    )
