"""A generator's weights as tensor cores read them, and where its maps lie.

Each layer has a map of its own from which it reads, in words of the precision: what it is given, activated, side by
side. A layer's value therefore is written once for each of those who read it. Numbers of channels are padded to
multiples of 8.
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
from .device import HOPPER, Device
from .float32_packing import all_taps, padded, parity_taps, parse, plain_taps
from .ptx.fragments import column_order
from .ptx.packed_words import ELEMENTS, KINDS, LARGEST_FLOAT16, words_of

NARROW = 4  # channels of a picture that are worth a layout of their own
MOST_READERS = 2


@dataclass(frozen=True, slots=True)
class Use:
    """Where a layer's value is written for one of its readers: `width` words from `first` of each pixel of its map."""

    map: str
    first: int
    width: int
    slope: np.float32


@dataclass(frozen=True, slots=True)
class MapOf:
    """What a layer reads: `words` of each pixel, and a border of zeros where pictures have one."""

    source: str
    words: int
    border: int = 0


@dataclass(frozen=True, slots=True)
class TensorPacked:
    """A layer on the GPU: kind, tile and splits of its product, and its weights in the GPU's memory."""

    layer: Layer
    kind: str  # "tensor" or "hopper"
    tile: str
    splits: int
    weights: Any  # packed words (phases, padded columns, taps * channels)
    columns: int
    affine: Any  # (3, columns): bias, gamma, beta; 0, 1, 0 where there is none


class TensorWeights:
    """All layers that a plan places on the GPU, packed and uploaded. Engines of one device can share it.

    Raises ValueError for weights that are too large for float16, and for maps that more than two layers read;
    RuntimeError for a plan that takes another GPU.
    """

    def __init__(self, generator: Generator, weights: Weights, plan: Plan, device: Device) -> None:
        self.generator, weights = fold(generator, weights)
        self.kind, self.device = KINDS[plan.precision], device
        self.channels = {INPUT: generator.in_channels, **{layer.name: layer.filters for layer in generator.layers}}
        served = plan.layers_on("cuda")
        layers = [layer for layer in self.generator.layers if layer.name in served]
        if device.capability != HOPPER and (boxed := [n for n in served if plan.layers[n].kind == "hopper"]):
            there, needed = (".".join(map(str, version)) for version in (device.capability, HOPPER))
            raise RuntimeError(
                f"cuda:{device.index} ({device.name}) has compute capability {there}, and the plan's "
                f"{str(plan.layers[boxed[0]])!r} for {boxed[0]} is for {needed}: use another plan"
            )
        self.maps: dict[str, MapOf] = {}
        self.uses: dict[str, list[Use]] = {layer.name: [] for layer in layers}
        for layer in layers:
            self._place(layer)
        for layer in layers:
            if not self.uses[layer.name] and layer.activation != "tanh":  # read elsewhere alone
                words = padded(layer.filters) // ELEMENTS[self.kind]
                self.maps[f"value of {layer.name}"] = MapOf(layer.name, words)
                self.uses[layer.name].append(Use(f"value of {layer.name}", 0, words, np.float32(1)))
        self.layers: Mapping[str, TensorPacked] = {
            layer.name: self._pack(layer, weights, plan.layers[layer.name]) for layer in layers
        }

    def _place(self, layer: Layer) -> None:
        """The map that a layer reads, and what is written there."""
        first = 0
        for source in layer.inputs:
            width = self._width(layer, source.layer)
            uses = self.uses.setdefault(source.layer, [])
            uses.append(Use(layer.name, first, width, np.float32(source.slope)))
            if len(uses) > MOST_READERS:
                raise ValueError(f"the GPU engine takes maps that {MOST_READERS} layers read: not {source.layer}")
            first += width
        self.maps[layer.name] = MapOf(layer.inputs[0].layer, first, int(self.reads_pairs(layer)))

    def _width(self, layer: Layer, source: str) -> int:
        """Words of each pixel that a layer reads of one of its inputs."""
        channels = self.channels[source]
        is_narrow = source == INPUT and channels <= NARROW
        return (NARROW if is_narrow else padded(channels)) // ELEMENTS[self.kind]

    def reads_pairs(self, layer: Layer) -> bool:
        """Whether a layer reads two neighbours of a picture's pixels as one, which so fill a chunk.

        The picture then has a border of zeros, so that pairs begin where chunks do.
        """
        channels = self.channels[layer.inputs[0].layer]
        return layer.inputs[0].layer == INPUT and channels <= NARROW and ELEMENTS[self.kind] == 2

    def _pack(self, layer: Layer, weights: Weights, algorithm: Algorithm) -> TensorPacked:
        kernel = weights[f"{layer.name}.kernel"]
        if layer.transposed:
            kernel = kernel.transpose(0, 1, 3, 2)
        per_word = ELEMENTS[self.kind]
        wide = np.zeros((4, 4, self.maps[layer.name].words * per_word, layer.filters), np.float32)
        row = first = 0
        for source in layer.inputs:
            count = self.channels[source.layer]
            wide[:, :, first : first + count] = kernel[:, :, row : row + count]
            row, first = row + count, first + self._width(layer, source.layer) * per_word
        if self.kind == KINDS["float16"] and (largest := np.abs(wide).max()) > LARGEST_FLOAT16:
            raise ValueError(f"{layer.name} has a weight of {largest:g}, too large for float16: use bfloat16 or tf32")
        is_last = layer.activation == "tanh"
        taps = (all_taps if is_last else parity_taps if layer.transposed else plain_taps)(wide)
        columns = padded(taps.shape[-1])
        order = column_order(columns)
        matrix = np.zeros((taps.shape[0], len(order), taps.shape[1]), np.float32)
        real = order < taps.shape[-1]
        matrix[:, real] = taps.transpose(0, 2, 1)[:, order[real]]

        affine = np.zeros((3, columns), np.float32)
        affine[1] = 1
        for row, part in enumerate(("bias", "gamma", "beta")):
            if (found := weights.get(f"{layer.name}.{part}")) is not None:
                affine[row, : layer.filters] = found
        kind, tile, splits = parse(algorithm)
        words = self.device.upload(words_of(matrix, self.kind).view(np.float32))
        return TensorPacked(layer, kind, tile, splits, words, columns, self.device.upload(affine))
