"""Weights of a generator: what can be folded into kernels before anything runs, and random weights for tests."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np

from .generator import Generator, Layer, Weights


def fold(generator: Generator, weights: Weights) -> tuple[Generator, dict[str, np.ndarray]]:
    """A generator that computes the same with less to do, and its weights: see :func:`folded`."""
    parts: dict[str, np.ndarray] = {}
    for layer in generator.layers:
        given = {name.rpartition(".")[2]: weights[name] for name in layer.tensors(generator.statistics)}
        parts |= {f"{layer.name}.{part}": array for part, array in fold_parts(generator, layer, given).items()}
    return folded(generator), parts


@functools.lru_cache(maxsize=64)
def folded(generator: Generator) -> Generator:
    """What :func:`fold` makes of a generator.

    Running statistics become part of kernels and biases; behind an inner leaky ReLU, of gamma and beta. A bias that a
    norm by the image's own statistics takes away is left out. The nearest upsampling of a map that is then padded with
    zeros becomes part of the kernel: see :func:`transposed_kernel`.
    """
    running = generator.statistics == "running"
    layers = tuple(_folded_layer(layer, running) for layer in generator.layers)
    return dataclasses.replace(generator, layers=layers, statistics="image")


def _folded_layer(layer: Layer, running: bool) -> Layer:
    norm = layer.norm
    if _loses_bias(layer, running):
        layer = dataclasses.replace(layer, bias=False)
    if norm and running and not norm.fixed:
        if layer.inner_slope == 1:
            layer = dataclasses.replace(layer, norm=None, bias=True)
        else:
            layer = dataclasses.replace(layer, norm=dataclasses.replace(norm, fixed=True, affine=True, groups=0))
    if not _upsamples_nearest(layer):
        return layer
    factor, kernel = layer.upsample, layer.kernel
    top, left, bottom, right = (kernel - 1 - side for side in layer.sampling.padding)
    return dataclasses.replace(
        layer,
        transposed=True,
        kernel=kernel + factor - 1,
        stride=factor,
        padding=top if top == left == bottom == right else (top, left, bottom, right),
        upsample=1,
    )


def _loses_bias(layer: Layer, running: bool) -> bool:
    """Whether the norm takes away whatever is added to all pixels of a channel."""
    return layer.norm is not None and not running and layer.norm.removes_means and layer.inner_slope == 1


def _upsamples_nearest(layer: Layer) -> bool:
    """Whether a layer is a transposed convolution in disguise."""
    by_zeros = layer.padding_mode == "zeros" or layer.padding in (0, (0, 0, 0, 0))
    nearest = layer.upsample > 1 and layer.upsample_mode == "nearest"
    return nearest and by_zeros and layer.stride == 1 and not layer.depthwise


def fold_parts(generator: Generator, layer: Layer, parts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors by part, computed in float64, that the layer of the :func:`folded` generator has.

    norm(conv(x, k) + b) = conv(x, k * r) + ((b - mean) * r + beta) with r = gamma / sqrt(variance + eps).
    """
    parts, norm, running = dict(parts), layer.norm, generator.statistics == "running"
    if _loses_bias(layer, running):
        parts.pop("bias", None)
    if norm and running and not norm.fixed:
        ratio = parts.pop("gamma", 1.0) / np.sqrt(parts.pop("variance").astype(np.float64) + norm.eps)
        shift = parts.pop("beta", 0.0) - parts.pop("mean") * ratio
        if layer.inner_slope == 1:
            along_filters = ratio[:, None] if layer.transposed else ratio
            parts = {"kernel": parts["kernel"] * along_filters, "bias": parts.get("bias", 0.0) * ratio + shift}
        else:
            parts |= {"gamma": ratio, "beta": shift}
    if _upsamples_nearest(layer):
        parts["kernel"] = transposed_kernel(parts["kernel"], layer.upsample)
    return {part: np.asarray(array, np.float32) for part, array in parts.items()}


def transposed_kernel(kernel: np.ndarray, factor: int) -> np.ndarray:
    """The kernel (kh+factor-1, kw+factor-1, out, in) of the transposed convolution of stride ``factor`` that computes
    what ``kernel`` (kh,kw,in,out) does on a map enlarged by repeating each pixel.

    The enlarged map is a transposed convolution with a kernel of ones; the two kernels make one. Taps that meet the
    same pixel of the smaller map are added up, so that fewer are left: 16 of 36 for 3x3 taps and factor 2.
    """
    kh, kw, depth, filters = kernel.shape
    sums = np.zeros((kh + factor - 1, kw + factor - 1, filters, depth), np.float64)
    flipped = kernel[::-1, ::-1].swapaxes(2, 3)
    for u in range(factor):
        for v in range(factor):
            sums[u : u + kh, v : v + kw] += flipped
    return sums


def random_weights(generator: Generator, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights as at the start of training, from N(0, 0.02) kernels and N(1, 0.02) gammas: for tests and benchmarks."""
    rng = np.random.default_rng(seed)
    mean_and_deviation = {"kernel": (0, 0.02), "gamma": (1, 0.02), "variance": (1, 0.1)}
    weights = {}
    for name, shape in generator.tensors().items():
        mean, deviation = mean_and_deviation.get(name.rpartition(".")[2], (0, 0.1))
        values = rng.standard_normal(shape, dtype=np.float32)
        values *= np.float32(deviation)
        values += np.float32(mean)
        weights[name] = values
    return weights
