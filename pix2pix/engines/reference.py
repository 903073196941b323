"""The oracle: the generator in plain NumPy, written to be read and checked, not to be fast.

Every other engine is tested against it. It computes in float64 by default, runs one operation after the other on one
image at a time, and treats every case literally: no folding, no constants, no fused passes. It is itself pinned to
small outputs of an independent framework, in tests/checkpoints/data.

Layers may be computed in 8-bit integers instead, by the definition in :mod:`pix2pix.model.quantisation`.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ..model import winograd
from ..model.generator import Generator, Norm, Source, Weights
from ..model.lowering import Op
from ..model.map_units import MapUnits
from ..model.quantisation import LEVELS, Quantised, Range
from ..model.sampling import Sampling
from .base import BaseEngine
from .execution import Context, Maps, Runner


def pad(x: np.ndarray, padding: tuple[int, int, int, int], mode: str = "zeros") -> np.ndarray:
    """(H,W,C) -> (H + top + bottom, W + left + right, C), with zeros, by reflection or by repeating the border."""
    top, left, bottom, right = padding
    numpy_mode: Any = {"reflect": "reflect", "replicate": "edge"}.get(mode, "constant")
    return np.pad(x, ((top, bottom), (left, right), (0, 0)), mode=numpy_mode)


def upsample(x: np.ndarray, factor: int, mode: str) -> np.ndarray:
    """(H,W,C) -> (factor * H, factor * W, C), as PyTorch's interpolate; ``bilinear-corners`` is with align_corners."""
    for axis in (0, 1):
        size = x.shape[axis]
        at = np.arange(size * factor)
        if mode == "nearest":
            x = x.take(at // factor, axis)
            continue
        if mode == "bilinear-corners":
            position = at * (size - 1) / max(1, size * factor - 1)
        else:
            position = np.clip((at + 0.5) / factor - 0.5, 0, size - 1)
        below = np.floor(position).astype(int)
        share = (position - below).astype(x.dtype).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        x = x.take(below, axis) * (1 - share) + x.take(np.minimum(below + 1, size - 1), axis) * share
    return x


def conv2d(x: np.ndarray, kernel: np.ndarray, stride: int = 1) -> np.ndarray:
    """y[i,j] = sum over a,b of x[i*stride + a, j*stride + b] @ kernel[a,b].

    x (H,W,Cin), padded; kernel (kh,kw,Cin,Cout), or (kh,kw,1,1) for every channel by itself -> (H',W',Cout).
    """
    kh, kw, depth, filters = kernel.shape
    h, w = (x.shape[0] - kh) // stride + 1, (x.shape[1] - kw) // stride + 1
    each = depth == 1 and x.shape[2] != 1
    y = np.zeros((h, w, x.shape[2] if each else filters), x.dtype)
    for a in range(kh):  # one product for a row of taps: NumPy's threads share large ones well
        rows = sliding_window_view(x[a : a + stride * h : stride], kw, axis=1)[:, ::stride]  # (H',W',Cin,kw)
        y += np.tensordot(rows, kernel[a, :, 0, 0], 1) if each else np.tensordot(rows, kernel[a], ((3, 2), (0, 1)))
    return y


def conv2d_transpose(x: np.ndarray, kernel: np.ndarray, sampling: Sampling) -> np.ndarray:
    """The adjoint of conv2d: y[i*stride + a - top, j*stride + b - left] += kernel[a,b] @ x[i,j].

    x (H,W,Cin), kernel (kh,kw,Cout,Cin) -> (H',W',Cout).
    """
    (kh, kw), (h, w), s = kernel.shape[:2], x.shape[:2], sampling.stride
    out_h, out_w = sampling.output_size(h, w)
    top, left = sampling.padding[:2]
    extra = sampling.output_padding
    y = np.zeros(((h - 1) * s + kh + extra, (w - 1) * s + kw + extra, kernel.shape[2]), x.dtype)
    for a in range(kh):
        products = np.tensordot(x, kernel[a], (2, 2))
        for b in range(kw):
            y[a : a + s * h : s, b : b + s * w : s] += products[:, :, b]
    return y[top : top + out_h, left : left + out_w]


def leaky_relu(x: np.ndarray, slope: float) -> np.ndarray:
    """x where it is positive, else slope * x."""
    return np.where(x > 0, x, x * x.dtype.type(slope))


def normalise(x: np.ndarray, mean: np.ndarray, variance: np.ndarray, eps: float) -> np.ndarray:
    """(x - mean) / sqrt(variance + eps), per channel."""
    return (x - mean) / np.sqrt(variance + np.asarray(eps, x.dtype))


def to_float(b: np.ndarray, dtype: type = np.float32) -> np.ndarray:
    """8-bit images -> [-1, 1], in the arithmetic of ``dtype``."""
    return b.astype(dtype) / dtype(255) * dtype(2) - dtype(1)


def to_uint8(y: np.ndarray, output_scale: float) -> np.ndarray:
    """[-1, 1] -> 8-bit images by the generator's rule: trunc(clip((y + 1) / 2 * output_scale, 0, 255))."""
    return np.clip((y + y.dtype.type(1)) / y.dtype.type(2) * y.dtype.type(output_scale), 0, 255).astype(np.uint8)


class ReferenceEngine(BaseEngine):
    """An engine that computes in NumPy, in float64 or float32.

    ``quantised`` has the layers that are computed in 8-bit integers; :func:`pix2pix.model.quantisation.quantise_all`
    makes it, for a folded generator. ``kept_in`` has those whose map is kept as float16, and in which units:
    :func:`pix2pix.model.map_units.map_units`.
    """

    def __init__(
        self,
        generator: Generator,
        weights: Weights,
        dtype: type = np.float64,
        quantised: Mapping[str, Quantised] = {},
        kept_in: Mapping[str, MapUnits] = {},
    ) -> None:
        super().__init__(generator)
        generator.check_weights(weights)
        self.dtype, self.quantised, self.kept_in = dtype, quantised, kept_in
        self.weights: dict[str, np.ndarray] = {name: array.astype(dtype) for name, array in weights.items()}
        self._runner = Runner[_Context](self.program)
        self.chunks.most_images = 1

    def _compute_chunk(self, given: Maps, results: Maps, stop: threading.Event) -> None:
        self._runner.compute_in(_Context(self), given, results, stop)


class _Context(Context):
    """The values (H,W,C) of one image, in the engine's dtype."""

    def __init__(self, engine: ReferenceEngine) -> None:
        self.constants = {}
        self._engine, self._values = engine, dict[str, np.ndarray]()

    def set_value(self, name: str, value: np.ndarray) -> None:
        dtype = self._engine.dtype
        self._values[name] = to_float(value[0], dtype) if value.dtype == np.uint8 else value[0].astype(dtype)

    def replay(self, key: Any, launch: Callable[[threading.Event], None], stop: threading.Event) -> None:
        launch(stop)

    def get_value(self, name: str, out: np.ndarray) -> None:
        value = self._values[name]
        out[0] = to_uint8(value, self._engine.generator.output_scale) if out.dtype == np.uint8 else value

    def run(self, op: Op, wanted: bool) -> None:
        epilogue = op.epilogue
        part = {
            name.rpartition(".")[2]: array
            for name, array in self._engine.weights.items()
            if name.startswith(f"{op.name}.")
        }
        inputs = [self._read(source) for source in op.sources]
        if op.name in self._engine.quantised:
            y: np.ndarray = convolve_integers(op, inputs, self._engine.quantised[op.name]).astype(self._engine.dtype)
        else:
            y = convolve(op, gather(op, inputs), part.get("kernel"))
        if epilogue.bias:
            y = y + part["bias"]
        y = leaky_relu(y, epilogue.inner_slope)
        units = self._engine.kept_in.get(op.name)
        if units:
            y = to_float16(y, units.sums)
        if epilogue.norm:
            if not epilogue.norm.fixed:
                y = self._normalise(y, part, epilogue.norm)
            if epilogue.norm.affine:
                y = y * part["gamma"] + part["beta"]
        if epilogue.activation == "tanh":
            y = np.tanh(y)
        if epilogue.residual:
            y = y + self._read(epilogue.residual)
            y = to_float16(y, units.values) if units else y
        self._values[op.name] = y

    def _normalise(self, y: np.ndarray, part: dict[str, np.ndarray], norm: Norm) -> np.ndarray:
        """``y`` (H,W,C) by its own statistics, or by those among the layer's tensors."""
        if self._engine.generator.statistics == "running":
            return normalise(y, part["mean"], part["variance"], norm.eps)
        exact = y.astype(np.float64)
        mean, variance = norm.statistics(exact.mean((0, 1)), exact.var((0, 1)))
        return normalise(y, mean.astype(y.dtype), variance.astype(y.dtype), norm.eps)

    def _read(self, source: Source) -> np.ndarray:
        """The value of a source through its leaky ReLU."""
        return leaky_relu(self._values[source.layer], source.slope)


def to_float16(y: np.ndarray, units: np.ndarray) -> np.ndarray:
    """``y`` (H,W,C) as float16 keeps it, in those units (C,)."""
    return (y / units).astype(np.float16).astype(y.dtype) * units


def to_integers(x: np.ndarray, step: float | np.ndarray, quantised: Quantised) -> np.ndarray:
    """A layer's input (H,W,C) in whole numbers, of which 0 stands for 0, in float64."""
    q = np.rint(x / (step * quantised.scales) + quantised.zeros)
    return np.clip(q, 0, LEVELS) - quantised.zeros


def convolve_integers(op: Op, inputs: list[np.ndarray], quantised: Quantised) -> np.ndarray:
    """The inputs (H,W,C) of an operation through its convolution in whole numbers; their sums are exact in float64."""
    x = gather(op, inputs).astype(np.float64)
    if quantised.is_transformed:
        return convolve_tiles(op, x, quantised)
    step = step_of(op, inputs, quantised.ends)
    return convolve(op, to_integers(x, step, quantised), quantised.kernel) * (step * quantised.units)


def convolve_tiles(op: Op, x: np.ndarray, quantised: Quantised) -> np.ndarray:
    """The input (H,W,C), enlarged, through an operation's convolution by Winograd's F(m x m, r x r) in whole numbers.

    Each point of each tile has the least ``step`` that holds all of its channels. The phases of a transposed
    convolution share their tiles, of which those of later rows and columns begin a pixel earlier.
    """
    s, t = op.sampling, math.isqrt(len(quantised.kernel))
    taps, step = s.kernel // s.stride, s.step
    m = t - taps + 1
    a, b = winograd.output_transform(m, t), winograd.input_transform(t)
    h, w = s.output_size(x.shape[0] // s.upsample, x.shape[1] // s.upsample)
    tiles = [(edge // s.scale + s.transposed + m - 1) // m for edge in (h, w)]
    before = (1, 1) if s.transposed else s.padding[:2]
    after = [
        step * (m * count + taps - 1) - size - first for count, size, first in zip(tiles, x.shape, before, strict=False)
    ]
    x = pad(x, (*before, *after), s.padding_mode)
    phases = np.concatenate([x[p::step, q::step] for p in range(step) for q in range(step)], 2)
    windows = sliding_window_view(phases, (t, t), (0, 1))[::m, ::m]
    y = np.zeros((m, m, *tiles, quantised.units.shape[1]))
    for (p, q), *parts in zip(np.ndindex(t, t), *quantised, strict=True):
        point, own = np.einsum("yxkij,ij->yxk", windows, np.outer(b[p], b[q])), Quantised(*parts)
        shares = (np.divide(point, end, out=np.zeros_like(point), where=end != 0) for end in own.ends)
        largest = np.maximum(*shares).max(2, keepdims=True)
        largest[largest == 0] = 1
        products = (to_integers(point, largest, own) @ own.kernel.astype(np.float64)) * (largest * own.units)
        y += np.multiply.outer(np.outer(a[:, p], a[:, q]), products)
    y = y.reshape(m, m, *tiles, s.scale, s.scale, -1).transpose(4, 5, 2, 0, 3, 1, 6)
    y = y.reshape(s.scale, s.scale, *(m * count for count in tiles), y.shape[-1])
    result = np.empty((h, w, y.shape[-1]))
    for r, c in np.ndindex(s.scale, s.scale):
        result[r :: s.scale, c :: s.scale] = y[r, c, r:, c:][: h // s.scale, : w // s.scale]
    return result


def step_of(op: Op, inputs: list[np.ndarray], ends: Range) -> float:
    """The least number by which the ends (C,) of an operation's ranges must be multiplied to hold all it reads.

    What it reads is known by the extremes of each of its ``inputs`` (H,W,C): for sums, those are added up.
    """
    join = np.concatenate if op.join == "concat" else functools.partial(np.sum, axis=0)
    shares = []
    for end, extreme in zip(ends, (np.min, np.max), strict=True):
        shares.append(join([extreme(x, (0, 1)) for x in inputs])[end != 0] / end[end != 0])
    return np.max(np.concatenate([*shares, [0]])) or 1.0


def gather(op: Op, inputs: list[np.ndarray]) -> np.ndarray:
    """The inputs (H,W,C) of an operation, joined and enlarged."""
    x = np.concatenate(inputs, axis=2) if op.join == "concat" else np.sum(inputs, axis=0)
    return upsample(x, op.sampling.upsample, op.sampling.upsample_mode) if op.sampling.upsample > 1 else x


def convolve(op: Op, x: np.ndarray, kernel: np.ndarray | None) -> np.ndarray:
    """The input (H,W,C), enlarged, through an operation's convolution."""
    sampling = op.sampling
    if kernel is None:
        kernel = np.outer(op.depthwise, op.depthwise)[..., None, None].astype(x.dtype)
    if sampling.transposed:
        return conv2d_transpose(x, kernel, sampling)
    y = conv2d(pad(x, sampling.padding, sampling.padding_mode), kernel, sampling.stride)
    if sampling.counts_padding:
        return y
    counted = pad(np.ones_like(x[..., :1]), sampling.padding)
    return y / conv2d(counted, kernel, sampling.stride) * kernel.sum()
