"""The walk over a generator's layers on one GPU in float32, for a number of images of one size: memory and launches.

All maps, and the scratch of all layers, are parts of one piece of memory that the engine's sizes share.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from ..model.generator import INPUT
from . import launches as _gpu_walk
from .float32_packing import DeviceWeights, Packed, Slice, padded
from .jit import SIMULATED
from .kernels import float32_maps as _cuda_maps
from .kernels import float32_norm as _cuda_norm
from .kernels.float32_gemm import SIMULATED_TILE, TILES, make_gemm
from .kernels.parameters import Images
from .launches import THREADS, Walk, cut, rounded

LANES, ROWS = (2, 2) if SIMULATED else (8, 32)
COLUMNS = 1 << 13 if SIMULATED else 1 << 26  # floats of im2col's matrix that are there at a time


@functools.cache
def gemm(tile: str) -> Any:
    """The kernel for a tile of that name."""
    return make_gemm(SIMULATED_TILE if SIMULATED else TILES[tile])


@functools.cache
def kernels() -> SimpleNamespace:
    """All others. Compiled when they are first launched."""
    return SimpleNamespace(
        **vars(_gpu_walk.kernels()),
        from_picture=_cuda_maps.make_from_picture(THREADS),
        add_splits=_cuda_maps.make_add_splits(THREADS),
        insert_zeros=_cuda_maps.make_insert_zeros(THREADS),
        im2col=_cuda_maps.make_im2col(THREADS),
        chunk_statistics=_cuda_norm.make_chunk_statistics(LANES, ROWS),
        normalise=_cuda_norm.make_normalise(LANES, ROWS),
    )


@dataclass(frozen=True, slots=True)
class Map:
    """A layer's value in the GPU's memory: a slice of a buffer (n, h, w, stride)."""

    array: Any
    h: int
    w: int
    at: Slice


class Source(NamedTuple):
    """What a layer reads, in the order of kernels' parameters; ``joined`` channels are read with the first slope."""

    array: Any
    h: int
    w: int
    stride: int
    first: int
    channels: int
    joined: int
    slope_1: np.float32
    slope_2: np.float32


class Window(NamedTuple):
    """Which pixels make up a row of the product's left side; see :func:`make_gemm`."""

    side: int
    zoom: int
    origin: int
    step: int


class Grid(NamedTuple):
    """The product's rows: the pixels of h x w of each image."""

    rows: int
    h: int
    w: int


class Target(NamedTuple):
    """Where a product goes."""

    array: Any
    stride: int
    first: int


def plain_source(array: Any, h: int, w: int, channels: int) -> Source:
    """A map that is nothing else, read as it is."""
    return Source(array, h, w, channels, 0, channels, channels, np.float32(1), np.float32(1))


class Forward(Walk):
    """The walk in float32. Maps are float32, not activated: what reads them does that."""

    def __init__(self, weights: DeviceWeights, n: int, h: int, w: int, memory: Any, stream: Any) -> None:
        super().__init__(weights, n, h, w, stream)
        arrays = cut(memory, _sizes(weights, n, h, w))
        self.transfer, self.scratch, self.statistics = (arrays.pop(name) for name in _SHARED)
        shapes = self.generator.shapes(h, w)
        self.maps = {
            name: Map(arrays[at.buffer], shapes[name][0], shapes[name][1], at)
            for name, at in weights.slices.items()
            if at.buffer in arrays
        }

    @staticmethod
    def floats(weights: DeviceWeights, n: int, h: int, w: int) -> int:
        """Memory that is needed for n images of h x w, in float32."""
        return sum(_sizes(weights, n, h, w).values())

    # -- what the engine asks for -----------------------------------------------------------------------------

    def set_pictures(self, b: Any) -> None:
        """The input from 8-bit pictures (n * h * w * channels) in the GPU's memory."""
        to = self.maps[INPUT]
        pixels = self.n * to.h * to.w
        self._launch(kernels().from_picture, pixels, b, to.array, pixels, to.at.channels, to.at.stride)

    def set_map(self, name: str, value: Any, images: int) -> None:
        """See :meth:`Walk.set_map`."""
        to = self.maps[name]
        rows, period = self.n * to.h * to.w, images * to.h * to.w
        shape = (rows, period, to.at.channels, to.at.channels, 0, to.at.width, to.at.stride, to.at.first)
        self._launch(kernels().copy_channels, rows * to.at.width, value, to.array, *shape)

    def get_map(self, name: str, out: Any, images: int) -> None:
        """A layer's value for the first images, to an array (images * h * w * channels) in the GPU's memory."""
        of = self.maps[name]
        rows, channels = images * of.h * of.w, of.at.channels
        shape = (rows, rows, channels, of.at.stride, of.at.first, channels, channels, 0)
        self._launch(kernels().copy_channels, rows * channels, of.array, out, *shape)

    # -- one layer --------------------------------------------------------------------------------------------

    def _compute(self, packed: Packed, picture: Any, is_wanted: bool) -> None:
        layer, at = packed.layer, self.weights.slices[packed.layer.name]
        last = layer.activation == "tanh"
        if last:
            target = Target(self.scratch, packed.columns, 0)
        else:
            target = Target(self.maps[layer.name].array, at.stride, at.first)
        if packed.algorithm == "implicit":
            self._implicit(packed, target)
        else:
            self._im2col(packed, target)
        if last:
            self._finish(packed, picture)
        elif layer.norm:
            self._normalise(packed)

    def _implicit(self, packed: Packed, target: Target) -> None:
        """A layer without a matrix of patches: the map itself is what :func:`make_gemm` reads."""
        layer, source, parities = packed.layer, self._source(packed), 1
        h, w = source.h, source.w
        if layer.activation == "tanh":
            window = Window(side=1, zoom=1, origin=0, step=1)
        elif layer.transposed:
            window, parities = Window(side=2, zoom=1, origin=0, step=-1), 4
        else:
            window, h, w = Window(side=4, zoom=2, origin=-1, step=1), h // 2, w // 2
        grid = Grid(self.n * h * w, h, w)
        if packed.splits == 1:
            self._multiply(packed, source, window, grid, parities, 1, target)
            return
        partial = Target(self._free_scratch(packed), 0, 0)
        self._multiply(packed, source, window, grid, parities, packed.splits, partial)
        count = parities * grid.rows * packed.columns // 4
        shape = (grid.rows, w, packed.columns, parities, packed.splits, target.stride, target.first)
        self._launch(kernels().add_splits, count, partial.array, packed.bias, target.array, *shape)

    def _im2col(self, packed: Packed, target: Target) -> None:
        """A layer by way of the matrix of patches, some rows at a time; transposed ones with zeros inserted first."""
        source, scratch = self._source(packed), self._free_scratch(packed)
        zoom, origin, h, w = 2, -1, source.h // 2, source.w // 2
        if packed.layer.transposed:
            zoom, origin, h, w = 1, 0, 2 * source.h, 2 * source.w
            inserted = plain_source(scratch, h + 3, w + 3, source.channels)
            count = self.n * inserted.h * inserted.w * source.channels
            self._launch(kernels().insert_zeros, count // 4, source.array, scratch, self.n, *source[1:])
            source, scratch = inserted, scratch[count:]
        depth = 16 * source.channels
        step = max(1, COLUMNS // depth)
        for begin in range(0, self.n * h * w, step):
            rows = min(step, self.n * h * w - begin)
            shape = (begin, rows, *source[1:], zoom, origin, h, w)
            self._launch(kernels().im2col, rows * depth // 4, source.array, scratch, *shape)
            matrix, window = plain_source(scratch, 1, rows, depth), Window(side=1, zoom=1, origin=0, step=1)
            part = target._replace(first=target.first + begin * target.stride)
            self._multiply(packed, matrix, window, Grid(rows, 1, rows), 1, 1, part)

    def _normalise(self, packed: Packed) -> None:
        """Normalise a layer's map by each image's own statistics, in place."""
        to, norm = self.maps[packed.layer.name], packed.layer.norm
        assert norm is not None
        pixels = to.h * to.w
        chunk = _cuda_norm.chunk_size(pixels)
        shape = (pixels, chunk, to.at.stride, to.at.first, to.at.width)
        grid = (-(-to.at.width // (4 * LANES)), -(-pixels // chunk), self.n)
        launch = (grid, LANES * ROWS, self.stream)
        kernels().chunk_statistics[launch](to.array, self.statistics, *shape)
        kernels().normalise[launch](to.array, self.statistics, packed.gamma, packed.beta, *shape, np.float32(norm.eps))

    def _finish(self, packed: Packed, picture: Any) -> None:
        """tanh, and what makes pictures of it."""
        taps, as_bytes = packed.algorithm == "implicit", picture.dtype == np.uint8
        pixels, scale = self.n * self.h * self.w, np.float32(self.generator.output_scale)
        shape = Images(self.n, self.h, self.w, packed.layer.filters)
        self._launch(
            kernels().to_image[taps, as_bytes],
            pixels,
            self.scratch,
            packed.picture_bias,
            picture,
            shape,
            packed.columns,
            scale,
        )

    # -- launching --------------------------------------------------------------------------------------------

    def _source(self, packed: Packed) -> Source:
        """What a layer reads: one map, or two side by side."""
        inputs = packed.layer.inputs
        first = self.maps[inputs[0].layer]
        channels = sum(self.weights.slices[source.layer].width for source in inputs)
        slopes = np.float32(inputs[0].slope), np.float32(inputs[-1].slope)
        return Source(first.array, first.h, first.w, first.at.stride, first.at.first, channels, first.at.width, *slopes)

    def _free_scratch(self, packed: Packed) -> Any:
        """The scratch but for what the last layer makes its picture of."""
        return self.scratch[_product_floats(self.weights, packed, self.n, self.h, self.w) :]

    def _multiply(
        self, packed: Packed, source: Source, window: Window, grid: Grid, parities: int, splits: int, target: Target
    ) -> None:
        """Launch the matrix product."""
        tile = SIMULATED_TILE if SIMULATED else TILES[packed.tile]
        blocks = (-(-grid.rows // tile.bm), -(-packed.columns // tile.bn), parities * splits)
        gemm(packed.tile)[blocks, tile.threads, self.stream](
            source.array,
            packed.weights,
            packed.bias,
            target.array,
            *source[1:],
            *window,
            *grid,
            packed.columns,
            parities,
            splits,
            target.stride,
            target.first,
        )


_SHARED = ("transfer", "scratch", "statistics")


def _sizes(weights: DeviceWeights, n: int, h: int, w: int) -> dict[str, int]:
    """Floats of every buffer, and of what all layers share, each rounded up so that the next is aligned."""
    shapes = weights.generator.shapes(h, w)
    used = {source.layer for packed in weights.layers.values() for source in packed.layer.inputs}
    used |= {name for name in weights.layers if weights.layers[name].layer.activation != "tanh"}
    sizes = dict.fromkeys(_SHARED, 0)
    for name in used:
        at, (map_h, map_w, channels) = weights.slices[name], shapes[name]
        sizes[at.buffer] = n * map_h * map_w * at.stride
        sizes["transfer"] = max(sizes["transfer"], n * map_h * map_w * channels)
    for packed in weights.layers.values():
        map_h, map_w, channels = shapes[packed.layer.name]
        chunks = -(-map_h * map_w // _cuda_norm.chunk_size(map_h * map_w))
        sizes["statistics"] = max(sizes["statistics"], 2 * n * chunks * padded(channels))
        sizes["scratch"] = max(sizes["scratch"], _scratch_floats(weights, packed, n, h, w))
        if packed.layer.activation == "tanh":
            sizes["transfer"] = max(sizes["transfer"], n * map_h * map_w * channels)
    return rounded(sizes)


def _product_floats(weights: DeviceWeights, packed: Packed, n: int, h: int, w: int) -> int:
    """Floats of the product that the last layer makes its picture of; others have none."""
    if packed.layer.activation != "tanh":
        return 0
    pixels = h * w // 4 if packed.algorithm == "implicit" else h * w
    return n * pixels * packed.columns


def _scratch_floats(weights: DeviceWeights, packed: Packed, n: int, h: int, w: int) -> int:
    shapes, layer = weights.generator.shapes(h, w), packed.layer
    source_h, source_w, _ = shapes[layer.inputs[0].layer]
    product = _product_floats(weights, packed, n, h, w)
    if packed.algorithm == "implicit":
        pixels = source_h * source_w if layer.transposed else source_h * source_w // 4
        parities = 4 if layer.transposed and not product else 1
        partial = packed.splits * parities * n * pixels * packed.columns if packed.splits > 1 else 0
        return product + partial
    channels = sum(weights.slices[source.layer].width for source in layer.inputs)
    inserted = n * (2 * source_h + 3) * (2 * source_w + 3) * channels if layer.transposed else 0
    rows = n * source_h * source_w * (4 if layer.transposed else 1)
    return product + inserted + min(rows * 16 * channels, max(COLUMNS, 16 * channels))
