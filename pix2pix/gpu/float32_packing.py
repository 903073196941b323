"""A generator's weights as the GPU's kernels read them, and where its maps lie side by side.

Numbers of channels are padded to multiples of 8. Maps that a layer concatenates are slices of one buffer, so that
nothing is copied to join them, and the layer's weights have a row for every channel of that buffer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..model.generator import INPUT, Generator, Layer, Weights
from ..model.weights import fold
from ..plans.algorithms import Algorithm
from ..plans.plan import Plan
from .device import Device
from .kernels.float32_gemm import TILES

UNIT = 8  # channels; what every tile's depth divides


def padded(channels: int) -> int:
    """Channels that a map has in memory."""
    return -(-channels // UNIT) * UNIT


@dataclass(frozen=True, slots=True)
class Slice:
    """Where a layer's value lies: `width` channels (`channels` of them real) from `first` of a buffer's `stride`."""

    buffer: str
    stride: int
    first: int
    channels: int
    width: int


def slices(generator: Generator) -> dict[str, Slice]:
    """Where the value of each layer, and the picture, lies. Raises ValueError for what no such layout exists."""
    channels = {INPUT: generator.in_channels, **{layer.name: layer.filters for layer in generator.layers}}
    result: dict[str, Slice] = {}
    for layer in generator.layers:
        if len(layer.inputs) > 1:
            stride, first = sum(padded(channels[source.layer]) for source in layer.inputs), 0
            for source in layer.inputs:
                if source.layer in result:
                    raise ValueError(f"the GPU engine takes maps that are concatenated once: not {source.layer}")
                width = padded(channels[source.layer])
                result[source.layer] = Slice(f"read by {layer.name}", stride, first, channels[source.layer], width)
                first += width
    for name, count in channels.items():
        result.setdefault(name, Slice(name, padded(count), 0, count, padded(count)))
    return result


@dataclass(frozen=True, slots=True)
class Packed:
    """A layer on the GPU: the algorithm that the plan says, and its weights in the GPU's memory."""

    layer: Layer
    algorithm: str  # "implicit" or "im2col"
    tile: str
    splits: int
    weights: Any  # (parities, taps * channels, columns)
    columns: int
    bias: Any  # (columns), zeros where there is none; what the product adds
    picture_bias: Any  # (columns); what is added when a picture is made of products with all taps
    gamma: Any  # (columns), ones where there is none
    beta: Any


class DeviceWeights:
    """All layers that a plan places on the GPU, packed and uploaded. Engines of one device can share it."""

    def __init__(self, generator: Generator, weights: Weights, plan: Plan, device: Device) -> None:
        self.generator, weights = fold(generator, weights)
        self.slices = slices(self.generator)
        served = plan.layers_on("cuda")
        self.layers: Mapping[str, Packed] = {
            layer.name: self._pack(layer, weights, plan.layers[layer.name], device)
            for layer in self.generator.layers
            if layer.name in served
        }

    def _pack(self, layer: Layer, weights: Weights, algorithm: Algorithm, device: Device) -> Packed:
        kernel = weights[f"{layer.name}.kernel"]
        if layer.transposed:
            kernel = kernel.transpose(0, 1, 3, 2)
        widths = [self.slices[source.layer].width for source in layer.inputs]
        real = [self.slices[source.layer].channels for source in layer.inputs]
        starts = np.cumsum([0, *widths[:-1]])
        rows = np.concatenate([start + np.arange(count) for start, count in zip(starts, real, strict=True)])
        wide = np.zeros((4, 4, sum(widths), layer.filters), np.float32)
        wide[:, :, rows] = kernel
        kind, tile, splits = parse(algorithm)
        taps = _TAPS[kind == "implicit", layer.transposed, layer.activation == "tanh"](wide)
        columns = padded(taps.shape[-1])

        def vector(part: str, default: float) -> Any:
            values = np.full(columns, default, np.float32)
            if (found := weights.get(f"{layer.name}.{part}")) is not None:
                values[: layer.filters] = found
            return device.upload(values)

        matrix = np.zeros((*taps.shape[:-1], columns), np.float32)
        matrix[..., : taps.shape[-1]] = taps
        biases = vector("bias", 0), device.upload(np.zeros(columns, np.float32))
        if kind == "implicit" and layer.activation == "tanh":
            biases = biases[::-1]
        parts = *biases, vector("gamma", 1), vector("beta", 0)
        return Packed(layer, kind, tile, splits, device.upload(matrix), columns, *parts)


def parse(algorithm: Algorithm) -> tuple[str, str, int]:
    """(kind, name of the tile, splits) of an algorithm."""
    tile = "x".join(map(str, algorithm.tile)) if algorithm.tile else next(iter(TILES))
    return algorithm.kind, tile, algorithm.splits


def plain_taps(kernel: np.ndarray) -> np.ndarray:
    """(4, 4, in, out) -> (1, 16 * in, out)"""
    return kernel.reshape(1, -1, kernel.shape[3])


def _flipped(kernel: np.ndarray) -> np.ndarray:
    """The filter of the plain convolution that a transposed one is, over a map with zeros inserted."""
    return plain_taps(kernel[::-1, ::-1])


def parity_taps(kernel: np.ndarray) -> np.ndarray:
    """(4, 4, in, out) -> (4, 4 * in, out): tap (d, e) of parity (py, px) is (1 - py + 2 * d, 1 - px + 2 * e)."""
    parts = [kernel[1 - py :: 2, 1 - px :: 2] for py in (0, 1) for px in (0, 1)]
    return np.stack([part.reshape(-1, kernel.shape[3]) for part in parts])


def all_taps(kernel: np.ndarray) -> np.ndarray:
    """(4, 4, in, out) -> (1, in, 16 * out)"""
    return kernel.transpose(2, 0, 1, 3).reshape(1, kernel.shape[2], -1)


# (implicit, transposed, last layer) -> how its filter becomes a matrix
_TAPS = {
    (True, False, False): plain_taps,
    (True, True, False): parity_taps,
    (True, True, True): all_taps,
    (False, False, False): plain_taps,
    (False, True, False): _flipped,
    (False, True, True): _flipped,
}
