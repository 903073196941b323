"""In which units feature maps are kept as float16: powers of two that follow from the weights.

float16 has 11 digits from 6.1e-5 to 65504 and none beyond. A map holds the sums of a convolution, and those of each
filter are multiples of a power of two near their expected root mean square. So 2^15 times as much fits, and what is
2^14 times smaller still has all its digits.

What is expected follows from the weights: a channel that is normalised by itself has mean beta and standard deviation
gamma; other channels what their weights make of the channels that they read, as if pixels were independent and normally
distributed. Channels that are normalised together have one unit, for their statistics are added up in it.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

from .generator import INPUT, Generator, Norm, Weights
from .lowering import Op, lower
from .weights import fold

IMAGE_DEVIATION = 0.5  # of an image's pixels, which go from -1 to 1
MOST_EXPONENT = 40  # of a unit: the inverse of its square times an eps is a float32, too

_normal_below = np.vectorize(lambda z: (1 + math.erf(z / math.sqrt(2))) / 2, otypes=[float])


class Expected(NamedTuple):
    """Mean and variance (C,) of each channel, over pixels and images; float64."""

    mean: np.ndarray
    variance: np.ndarray

    def activated(self, slope: float) -> Expected:
        """Those behind a leaky ReLU."""
        if slope == 1:
            return self
        mean, variance = self
        deviation = np.sqrt(np.maximum(variance, np.finfo(float).tiny))
        square, z = mean**2 + variance, mean / deviation
        below, density = _normal_below(z), np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
        positive = mean * below + deviation * density  # of max(x, 0), and of its square
        positive_square = square * below + mean * deviation * density
        mean = positive + slope * (mean - positive)
        return Expected(mean, positive_square + slope**2 * (square - positive_square) - mean**2)

    def of_groups(self, norm: Norm) -> Expected:
        """Those of all channels of each group."""
        return Expected(*norm.statistics(*self))

    def normalised(self, norm: Norm) -> Expected:
        """Those behind a norm by an image's own statistics, without gamma and beta."""
        if not norm.groups:
            return Expected(np.zeros_like(self.mean), np.ones_like(self.variance))
        mean, variance = self.of_groups(norm)
        variance = np.maximum(variance, np.finfo(float).tiny)
        return Expected((self.mean - mean) / np.sqrt(variance), self.variance / variance)


class MapUnits(NamedTuple):
    """Powers of two (filters,), float32."""

    sums: np.ndarray  # in which an operation's sums are kept
    values: np.ndarray  # in which its value is kept, if a residual is added


class Expectations:
    """What the values of a program's operations are expected to be; one after the other, in the program's order."""

    def __init__(self, in_channels: int) -> None:
        image = Expected(np.zeros(in_channels), np.full(in_channels, IMAGE_DEVIATION**2))
        self._known = {INPUT: image}

    def units(self, op: Op, parts: Weights) -> MapUnits:
        """The units of the next operation's map, from its tensors by part."""
        inputs = [self._known[source.layer].activated(source.slope) for source in op.sources]
        join = np.concatenate if op.join == "concat" else functools.partial(np.sum, axis=0)
        sums = value = Expected(*(join(each) for each in zip(*inputs, strict=True)))
        if not op.depthwise:
            sums = value = _sums(op, parts, sums)
        if norm := op.epilogue.norm:
            gamma, beta = parts.get("gamma", np.ones(op.filters)), parts.get("beta", np.zeros(op.filters))
            normalised = sums if norm.fixed else sums.normalised(norm)
            value = Expected(normalised.mean * gamma + beta, gamma.astype(np.float64) ** 2 * normalised.variance)
        if residual := op.epilogue.residual:
            added = self._known[residual.layer].activated(residual.slope)
            value = Expected(value.mean + added.mean, value.variance + added.variance)
        self._known[op.name] = value
        return MapUnits(_unit(sums.of_groups(norm) if norm else sums), _unit(value))


def map_units(generator: Generator, weights: Weights) -> dict[str, MapUnits]:
    """The units of every operation of the folded generator that makes a map by its weights."""
    folded, tensors = fold(generator, weights)
    expectations, units = Expectations(generator.in_channels), {}
    for op in lower(folded).ops:
        layer = folded[op.name].tensors(folded.statistics)
        parts = {name.rpartition(".")[2]: tensors[name] for name in layer}
        units[op.name] = expectations.units(op, parts)
    return {op.name: units[op.name] for op in lower(folded).ops if not (op.depthwise or op.makes_image)}


def _sums(op: Op, parts: Weights, read: Expected) -> Expected:
    """What a convolution's sums over such channels are expected to be, with the bias, behind the inner leaky ReLU."""
    kernel = parts["kernel"]
    total, squares = kernel.sum((0, 1)), np.einsum("abcf,abcf->cf", kernel, kernel)
    if op.sampling.transposed:
        total, squares = total.T, squares.T
    share = op.sampling.scale**-2  # of the taps that a pixel of the output meets
    mean, variance = read.mean @ total * share, read.variance @ squares * share
    return Expected(mean + parts.get("bias", 0), variance).activated(op.epilogue.inner_slope)


def _unit(expected: Expected) -> np.ndarray:
    """The power of two next to the root mean square."""
    square = expected.mean**2 + expected.variance
    exponents = np.rint(np.log2(square, out=np.zeros_like(square), where=(square > 0) & np.isfinite(square)) / 2)
    return np.exp2(np.clip(exponents, -MOST_EXPONENT, MOST_EXPONENT)).astype(np.float32)
