"""The oracle: the generator in plain NumPy, written to be read and checked, not to be fast.

Every other engine is tested against it. It computes in float64 by default, runs one operation after the other on one
image at a time, and treats every case literally: no folding, no constants, no fused passes. It is itself pinned to
small outputs of an independent framework, in tests/checkpoints/data.
"""

from __future__ import annotations

import threading

import numpy as np

from ..model.generator import INPUT, Generator, Source, Weights
from ..model.lowering import Op
from ..model.sampling import Sampling
from .base import BaseEngine


def pad(x: np.ndarray, padding: tuple[int, int, int, int], mode: str = "zeros") -> np.ndarray:
    """(H,W,C) -> (H + top + bottom, W + left + right, C), with zeros, by reflection or by repeating the border."""
    top, left, bottom, right = padding
    numpy_mode = {"zeros": "constant", "reflect": "reflect", "replicate": "edge"}[mode]
    return np.pad(x, ((top, bottom), (left, right), (0, 0)), mode=numpy_mode)


def upsample(x: np.ndarray, factor: int, mode: str) -> np.ndarray:
    """(H,W,C) -> (factor * H, factor * W, C); bilinear as PyTorch's interpolate, ``bilinear-corners`` aligns corners."""
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
    for a in range(kh):
        for b in range(kw):
            read = x[a : a + stride * h : stride, b : b + stride * w : stride]
            y += read * kernel[a, b, 0, 0] if each else read @ kernel[a, b]
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
        for b in range(kw):
            y[a : a + s * h : s, b : b + s * w : s] += x @ kernel[a, b].T
    return y[top : top + out_h, left : left + out_w]


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
    """An engine that computes in NumPy, in float64 or float32."""

    def __init__(self, generator: Generator, weights: Weights, dtype: type = np.float64) -> None:
        super().__init__(generator)
        generator.check_weights(weights)
        self.dtype = dtype
        self._weights: dict[str, np.ndarray] = {name: array.astype(dtype) for name, array in weights.items()}

    def _run(self, given: dict[str, np.ndarray], outputs: tuple[str, ...]) -> dict[str, np.ndarray]:
        values = self.values(given, outputs)
        return {name: values[name].astype(np.float32) for name in outputs}

    def _translate(self, b: np.ndarray, out: np.ndarray, stop: threading.Event) -> None:
        last = self.generator.layers[-1].name
        for image, result in zip(b, out, strict=True):
            if stop.is_set():
                return
            y = self.values({INPUT: to_float(image[None], self.dtype)}, (last,))[last]
            result[...] = to_uint8(y, self.generator.output_scale)[0]

    def values(self, given: dict[str, np.ndarray], outputs: tuple[str, ...]) -> dict[str, np.ndarray]:
        """Values (N,H,W,C) of ``outputs``, not yet rounded to float32."""
        images = []
        for n in range(next(iter(given.values())).shape[0]):
            known = {name: value[n].astype(self.dtype) for name, value in given.items()}
            for op in self.program.needed(outputs, given):
                known[op.name] = self._compute(op, known)
            images.append(known)
        return {name: np.stack([known[name] for known in images]) for name in outputs}

    def _compute(self, op: Op, known: dict[str, np.ndarray]) -> np.ndarray:
        """The value (H,W,C) of one operation."""
        epilogue, sampling = op.epilogue, op.sampling
        part = {
            name.rpartition(".")[2]: array for name, array in self._weights.items() if name.startswith(f"{op.name}.")
        }

        def read(source: Source) -> np.ndarray:
            x = known[source.layer]
            return np.where(x > 0, x, x * self.dtype(source.slope))

        inputs = [read(source) for source in op.sources]
        x = np.concatenate(inputs, axis=2) if op.join == "concat" else np.sum(inputs, axis=0)
        if sampling.transposed:
            y = conv2d_transpose(x, part["kernel"], sampling)
        else:
            if sampling.upsample > 1:
                x = upsample(x, sampling.upsample, sampling.upsample_mode)
            kernel = np.outer(op.depthwise, op.depthwise)[..., None, None] if op.depthwise else part["kernel"]
            y = conv2d(pad(x, sampling.padding, sampling.padding_mode), kernel.astype(self.dtype), sampling.stride)
        if epilogue.bias:
            y = y + part["bias"]
        if epilogue.norm:
            if self.program.statistics == "image":
                exact = y.astype(np.float64)
                mean, variance = (m.astype(self.dtype) for m in (exact.mean((0, 1)), exact.var((0, 1))))
            else:
                mean, variance = part["mean"], part["variance"]
            y = normalise(y, mean, variance, epilogue.norm.eps)
            if epilogue.norm.affine:
                y = y * part["gamma"] + part["beta"]
        if epilogue.activation == "tanh":
            y = np.tanh(y)
        return y + read(epilogue.residual) if epilogue.residual else y
