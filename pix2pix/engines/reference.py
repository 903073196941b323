"""The oracle: the generator in plain NumPy, written to be read and checked, not to be fast.

Every other engine is tested against it. It computes in float64 by default, walks the layers one image at a time and
treats every case literally: no folding, no constants, no fused passes. Its own anchor is a set of small outputs of an
independent framework, in tests/checkpoints/data.
"""

from __future__ import annotations

import threading

import numpy as np

from ..model.generator import INPUT, Generator, Layer, Weights
from .base import BaseEngine


def pad(x: np.ndarray, amount: int, mode: str) -> np.ndarray:
    """(H,W,C) -> (H + 2 * amount, W + 2 * amount, C), with zeros or by reflection."""
    margins = ((amount, amount), (amount, amount), (0, 0))
    return np.pad(x, margins, mode="reflect") if mode == "reflect" else np.pad(x, margins)


def conv2d(x: np.ndarray, kernel: np.ndarray, stride: int, padding: int, mode: str = "zeros") -> np.ndarray:
    """y[i,j] = sum over a,b of x[i*stride + a - padding, j*stride + b - padding] @ kernel[a,b].

    x (H,W,Cin), kernel (kh,kw,Cin,Cout) -> (H',W',Cout).
    """
    kh, kw = kernel.shape[:2]
    x = pad(x, padding, mode)
    h, w = (x.shape[0] - kh) // stride + 1, (x.shape[1] - kw) // stride + 1
    y = np.zeros((h, w, kernel.shape[3]), x.dtype)
    for a in range(kh):
        for b in range(kw):
            y += x[a : a + stride * h : stride, b : b + stride * w : stride] @ kernel[a, b]
    return y


def conv2d_transpose(x: np.ndarray, kernel: np.ndarray, stride: int, padding: int) -> np.ndarray:
    """The adjoint of conv2d: y[i*stride + a - padding, j*stride + b - padding] += kernel[a,b] @ x[i,j].

    x (H,W,Cin), kernel (kh,kw,Cout,Cin) -> (H',W',Cout).
    """
    kh, kw = kernel.shape[:2]
    h, w = x.shape[:2]
    y = np.zeros(((h - 1) * stride + kh, (w - 1) * stride + kw, kernel.shape[2]), x.dtype)
    for a in range(kh):
        for b in range(kw):
            y[a : a + stride * h : stride, b : b + stride * w : stride] += x @ kernel[a, b].T
    return y[padding : y.shape[0] - padding, padding : y.shape[1] - padding]


def normalise(x: np.ndarray, mean: np.ndarray, variance: np.ndarray, eps: float) -> np.ndarray:
    """(x - mean) / sqrt(variance + eps), per channel."""
    return (x - mean) / np.sqrt(variance + np.asarray(eps, x.dtype))


def to_float(b: np.ndarray, dtype: type = np.float32) -> np.ndarray:
    """8-bit pictures -> [-1, 1], in the arithmetic of ``dtype``."""
    return b.astype(dtype) / dtype(255) * dtype(2) - dtype(1)


def to_uint8(y: np.ndarray, output_scale: float) -> np.ndarray:
    """[-1, 1] -> 8-bit pictures by the generator's rule: trunc(clip((y + 1) / 2 * output_scale, 0, 255))."""
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
        for picture, result in zip(b, out, strict=True):
            if stop.is_set():
                return
            y = self.values({INPUT: to_float(picture[None], self.dtype)}, (last,))[last]
            result[...] = to_uint8(y, self.generator.output_scale)[0]

    def values(self, given: dict[str, np.ndarray], outputs: tuple[str, ...]) -> dict[str, np.ndarray]:
        """Values (N,H,W,C) of ``outputs``, not yet rounded to float32."""
        images = []
        for n in range(next(iter(given.values())).shape[0]):
            known = {name: value[n].astype(self.dtype) for name, value in given.items()}
            for layer in self.generator.needed(outputs, given):
                known[layer.name] = self._compute(layer, known)
            images.append(known)
        return {name: np.stack([known[name] for known in images]) for name in outputs}

    def _compute(self, layer: Layer, known: dict[str, np.ndarray]) -> np.ndarray:
        """The value (H,W,C) of one layer."""
        part = {name.rpartition(".")[2]: self._weights[name] for name in layer.tensors(self.generator.statistics)}
        read = []
        for source in layer.inputs:
            x = known[source.layer]
            read.append(np.where(x > 0, x, x * self.dtype(source.slope)))
        x = np.concatenate(read, axis=2) if layer.join == "concat" else np.sum(read, axis=0)
        if layer.transposed:
            y = conv2d_transpose(x, part["kernel"], layer.stride, layer.padding)
        else:
            y = conv2d(x, part["kernel"], layer.stride, layer.padding, layer.padding_mode)
        if layer.bias:
            y = y + part["bias"]
        if layer.norm:
            if self.generator.statistics == "image":
                exact = y.astype(np.float64)
                mean, variance = (m.astype(self.dtype) for m in (exact.mean((0, 1)), exact.var((0, 1))))
            else:
                mean, variance = part["mean"], part["variance"]
            y = normalise(y, mean, variance, layer.norm.eps)
            if layer.norm.affine:
                y = y * part["gamma"] + part["beta"]
        return np.tanh(y) if layer.activation == "tanh" else y
