"""The forward pass of one GPU, for a number of images of one size: memory and launches.

A layer's value is written, activated, into the map of each layer that reads it, in packed words of the precision
(:mod:`pix2pix.gpu.ptx.packed_words`). The value itself is kept in float32 only where it is asked for, or was given.

Norms need the statistics of a whole image. Where an image's rows fill tiles of the product, the product writes each
tile's statistics, and a second kernel normalises the map in place: for a few images at a time, so that their maps are
still in the GPU's cache. Smaller maps, and sums that blocks share, are finished from partial sums: a small map by one
block that sees it whole, a larger one in parts that write statistics too.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from ..model.generator import INPUT
from . import launches as _gpu_walk
from .jit import SIMULATED
from .kernels.epilogue import MAPS, NORMALISED, PARTIAL_SUMS, STATISTICS
from .kernels.hopper_gemm import HOPPER_TILES, SIMULATED_HOPPER_TILE, HopperTile, make_hopper_gemm
from .kernels.maps import make_read_map, make_write_map
from .kernels.mma_gemm import MMA_TILES, SIMULATED_MMA_TILE, MmaTile, make_mma_gemm
from .kernels.normalise import make_finish_map, make_normalise_map
from .kernels.parameters import (
    NO_TARGET,
    BoxGrid,
    Gemm,
    Grid,
    Images,
    Norm,
    Source,
    Sums,
    Target,
    Targets,
    Values,
    Window,
)
from .launches import THREADS, Walk, cut, rounded
from .packing import TensorPacked, TensorWeights, Use
from .ptx.fragments import COLUMN_UNIT, SWIZZLE_ROW, VECTOR
from .tensor_maps import encode, source_map, weight_map

LANES, ROWS, FEW_LANES = (2, 2, 1) if SIMULATED else (8, 32, 4)
WHOLE = 64 if SIMULATED else 1024  # pixels of a map that one block normalises
MOST_PARTS = 65535  # of a grid
ONE_CHANNEL = (1, 1, 0, 1, 1, 0)  # of a pixel: how copy_channels copies an array
PART = 32 if SIMULATED else 256  # pixels of larger ones that a block finishes
CACHED = 1 << 12 if SIMULATED else 1 << 23  # words of a map that stay in the GPU's cache


@functools.cache
def product(tile: MmaTile | HopperTile, kind: int, epilogue: int) -> Any:
    """The product's kernel for a tile."""
    return (make_hopper_gemm if isinstance(tile, HopperTile) else make_mma_gemm)(tile, kind, epilogue)


@functools.cache
def finish(kind: int, epilogue: int) -> Any:
    """The kernel that finishes maps from partial sums."""
    return make_finish_map(FEW_LANES, LANES * ROWS // FEW_LANES, kind, epilogue)


@functools.cache
def kernels(kind: int) -> SimpleNamespace:
    """All others. Compiled when they are first launched."""
    return SimpleNamespace(
        **vars(_gpu_walk.kernels()),
        write_map={as_bytes: make_write_map(THREADS, kind, as_bytes) for as_bytes in (False, True)},
        read_map=make_read_map(THREADS, kind),
        normalise_map=make_normalise_map(LANES, ROWS, kind),
    )


ONE_PIXEL = Window(1, 1, 1, 1, 0, 1)
CONVOLUTION = Window(4, 4, 2, 2, 1, 1)
OF_PAIRS = Window(4, 2, 2, 1, 0, 1)
TRANSPOSED = Window(2, 2, 1, 1, 0, -1)


class Shape(NamedTuple):
    """A layer's product for one image: rows are the pixels of h x w, for each phase."""

    h: int
    w: int
    phases: int

    @property
    def rows(self) -> int:
        """Rows of the product, for each phase."""
        return self.h * self.w


def shape_of(weights: TensorWeights, packed: TensorPacked, h: int, w: int) -> Shape:
    """The shape of a layer's product, for images of h x w."""
    layer = packed.layer
    source_h, source_w, _ = weights.generator.shapes(h, w)[layer.inputs[0].layer]
    if not layer.transposed:
        return Shape(source_h // 2, source_w // 2, 1)
    return Shape(source_h, source_w, 1 if layer.activation == "tanh" else 4)


def window_of(weights: TensorWeights, packed: TensorPacked) -> Window:
    """Which pixels a layer's product reads."""
    if packed.layer.transposed:
        return ONE_PIXEL if packed.layer.activation == "tanh" else TRANSPOSED
    return OF_PAIRS if weights.maps[packed.layer.name].border else CONVOLUTION


def tile_of(weights: TensorWeights, packed: TensorPacked, shape: Shape) -> MmaTile | HopperTile:
    """The tile that the layer's plan says; mma_gemm's 128x128 where hopper_gemm cannot do the shape."""
    if packed.kind == "hopper" and weights.maps[packed.layer.name].words % SWIZZLE_ROW == 0:
        tile = SIMULATED_HOPPER_TILE if SIMULATED else HOPPER_TILES[packed.tile]
        if tile.box(shape.h, shape.w):
            return tile
    return SIMULATED_MMA_TILE if SIMULATED else MMA_TILES.get(packed.tile, MMA_TILES["128x128"])


def writes_sums(packed: TensorPacked, shape: Shape, tile: MmaTile | HopperTile) -> bool:
    """Whether a layer's product writes partial sums, from which another kernel makes maps or an image."""
    is_small = packed.layer.norm is not None and shape.rows < tile.bm
    return packed.splits > 1 or is_small or packed.layer.activation == "tanh"


class TensorForward(Walk):
    """The walk in a precision of tensor cores."""

    def __init__(self, weights: TensorWeights, n: int, h: int, w: int, memory: Any, stream: Any) -> None:
        super().__init__(weights, n, h, w, stream)
        self.kind, self.shapes = weights.kind, self.generator.shapes(h, w)
        self.maps = cut(memory, _sizes(weights, n, h, w))
        self.transfer, self.scratch, self.statistics = (self.maps.pop(name) for name in _SHARED)
        self.tensor_maps: dict[str, tuple[Any, Any]] = {}  # of layers that hopper_gemm computes
        for name, packed in weights.layers.items():
            shape = shape_of(weights, packed, h, w)
            if isinstance(tile := tile_of(weights, packed, shape), HopperTile):
                self.tensor_maps[name] = self._encoded(packed, shape, tile)
        self.values: dict[str, Any] = {}  # of layers that were given or asked for, float32 (n, h, w, channels)

    @staticmethod
    def floats(weights: TensorWeights, n: int, h: int, w: int) -> int:
        """Memory that is needed for n images of h x w, in words."""
        return sum(_sizes(weights, n, h, w).values())

    # -- what the engine asks for -----------------------------------------------------------------------------

    def set_pictures(self, b: Any) -> None:
        """The input from 8-bit pictures (n * h * w * channels) in the GPU's memory."""
        for use in self.weights.uses[INPUT]:
            self._write(INPUT, use, b, self.n)

    def set_map(self, name: str, value: Any, images: int) -> None:
        """See :meth:`Walk.set_map`."""
        size = value.size * self.n // images
        self._launch(
            kernels(self.kind).copy_channels, size, value, self._value(name), size, value.size, 1, 1, 0, 1, 1, 0
        )
        for use in self.weights.uses.get(name, ()):
            self._write(name, use, value, images)

    def get_map(self, name: str, out: Any, images: int) -> None:
        """A layer's value for the first images, to an array (images * h * w * channels) in the GPU's memory."""
        size = images * int(np.prod(self.shapes[name]))
        self._launch(kernels(self.kind).copy_channels, size, self.values[name], out, size, size, *ONE_CHANNEL)

    def _value(self, name: str) -> Any:
        """Memory for a layer's value, which stays. Raises MemoryError."""
        if name not in self.values:
            self.values[name] = self.weights.device.empty(self.n * int(np.prod(self.shapes[name])))
        return self.values[name]

    def _write(self, name: str, use: Use, value: Any, images: int) -> None:
        """A value into the map of one of its readers."""
        (h, w, channels), to = self.shapes[name], self.weights.maps[use.map]
        kernel = kernels(self.kind).write_map[value.dtype == np.uint8]
        shape, target = Values(self.n, images, h, w, channels), Target(to.words, use.first, use.slope)
        count = self.n * (h + 2 * to.border) * (w + 2 * to.border) * use.width
        self._launch(kernel, count, value, self.maps[use.map], shape, to.border, use.width, target)

    # -- one layer --------------------------------------------------------------------------------------------

    def _compute(self, packed: TensorPacked, picture: Any, is_wanted: bool) -> None:
        layer = packed.layer
        if layer.activation == "tanh":
            self._last(packed, picture)
            return
        uses = self.weights.uses[layer.name]
        outputs = [self._output(use) for use in uses]
        if not is_wanted:
            self._fill(packed, outputs)
            return
        self._fill(packed, [outputs[0].plain()])  # the value without activation, then all readers' maps from it
        (h, w, channels), value, (array, target) = self.shapes[layer.name], self._value(layer.name), outputs[0]
        pixels = self.n * h * w
        read_map = kernels(self.kind).read_map
        self._launch(read_map, pixels * uses[0].width, array, value, pixels, channels, target.stride, target.first)
        for use in uses:
            self._write(layer.name, use, value, self.n)

    def _last(self, packed: TensorPacked, picture: Any) -> None:
        """The products of every pixel with all taps, then the image."""
        self._multiply(packed, slice(0, self.n), PARTIAL_SUMS, [])
        as_bytes, scale = picture.dtype == np.uint8, np.float32(self.generator.output_scale)
        shape = Images(self.n, self.h, self.w, packed.layer.filters)
        kernel, pixels = kernels(self.kind).to_image[True, as_bytes], self.n * self.h * self.w
        self._launch(kernel, pixels, self.scratch, packed.affine, picture, shape, packed.columns, scale)

    def _fill(self, packed: TensorPacked, outputs: list[Output]) -> None:
        """Compute a layer's value into the maps of its readers."""
        norm, shape = packed.layer.norm, shape_of(self.weights, packed, self.h, self.w)
        tile = tile_of(self.weights, packed, shape)
        if writes_sums(packed, shape, tile):
            self._multiply(packed, slice(0, self.n), PARTIAL_SUMS, [])
            self._finish(packed, shape, outputs)
        elif norm:
            pixels, tiles = shape.rows * shape.phases, -(-shape.rows // tile.bm)
            cut = Norm(pixels, shape.phases, tiles, tile.bm, packed.columns, np.float32(norm.eps))
            step = max(1, CACHED // (pixels * packed.columns))
            for first in range(0, self.n, step):
                images = slice(first, min(first + step, self.n))
                self._multiply(packed, images, STATISTICS, [outputs[0].plain()])
                self._normalise(packed, images, cut, outputs)
        else:
            self._multiply(packed, slice(0, self.n), MAPS, outputs)

    def _multiply(self, packed: TensorPacked, images: slice, epilogue: int, outputs: list[Output]) -> None:
        """Launch the product for some images."""
        shape = shape_of(self.weights, packed, self.h, self.w)
        tile = tile_of(self.weights, packed, shape)
        if isinstance(tile, HopperTile):
            tiles, operands, source, grid = self._in_boxes(packed, images, shape, tile)
        else:
            groups = images.stop - images.start if epilogue == STATISTICS else 1
            tiles, operands, source, grid = self._in_rows(packed, images, shape, tile, groups)
        kernel = product(tile, self.kind, epilogue)
        window = window_of(self.weights, packed)
        gemm = Gemm(source, window, grid, packed.columns, shape.phases, packed.splits)
        arrays = self._arrays(packed, images, outputs)
        arguments = (*operands, packed.affine, *arrays, self.statistics, gemm, _targets(outputs))
        if tile.shared:
            self.weights.device.allow_shared(kernel, arguments, tile.shared)
        blocks = (tiles, -(-packed.columns // tile.bn), shape.phases * packed.splits)
        kernel[blocks, tile.threads, self.stream, tile.shared](*arguments)

    def _in_rows(
        self, packed: TensorPacked, images: slice, shape: Shape, tile: MmaTile, groups: int
    ) -> tuple[int, tuple[Any, Any], Source, Grid]:
        """Number of tiles, operands, source and grid of mma_gemm; tiles don't cross the borders of `groups`."""
        at = self.weights.maps[packed.layer.name]
        h, w, _ = self.shapes[packed.layer.inputs[0].layer]
        source = Source(h + 2, w // 2 + 1, 2 * at.words) if at.border else Source(h, w, at.words)
        rows = (images.stop - images.start) * shape.rows // groups
        tiles = -(-rows // tile.bm)
        array = self.maps[packed.layer.name][images.start * source.h * source.w * source.words :]
        return groups * tiles, (array, packed.weights), source, Grid(shape.h, shape.w, rows, tiles)

    def _in_boxes(
        self, packed: TensorPacked, images: slice, shape: Shape, tile: HopperTile
    ) -> tuple[int, tuple[Any, Any], Source, BoxGrid]:
        """Number of tiles, operands, source and grid of hopper_gemm."""
        h, w, _ = self.shapes[packed.layer.inputs[0].layer]
        source, box = Source(h, w, self.weights.maps[packed.layer.name].words), tile.box(shape.h, shape.w)
        assert box is not None
        n = images.stop - images.start
        tiles = -(-n // box.images) * (shape.h // box.h) * (shape.w // box.w)
        grid = BoxGrid(shape.h, shape.w, images.start, n, box.h.bit_length() - 1, box.w.bit_length() - 1)
        return tiles, self.tensor_maps[packed.layer.name], source, grid

    def _encoded(self, packed: TensorPacked, shape: Shape, tile: HopperTile) -> tuple[Any, Any]:
        """Tensor maps of what a layer reads, and of its weights."""
        device, words = self.weights.device, self.weights.maps[packed.layer.name].words
        h, w, _ = self.shapes[packed.layer.inputs[0].layer]
        box, stride = tile.box(shape.h, shape.w), window_of(self.weights, packed).stride_h
        assert box is not None
        rows = shape.phases * -(-packed.columns // COLUMN_UNIT) * COLUMN_UNIT
        source = source_map(self.maps[packed.layer.name], (self.n, h, w, words), stride, box)
        weights = weight_map(packed.weights, rows, packed.weights.size // rows, tile.bn)
        return encode(device, source), encode(device, weights)

    def _arrays(self, packed: TensorPacked, images: slice, outputs: list[Output]) -> tuple[Any, Any]:
        """Where the images' values go: the arrays out and out2 of kernels."""
        h, w, _ = self.shapes[packed.layer.name]
        arrays = [output.array[images.start * h * w * output.target.stride :] for output in outputs]
        return tuple((*arrays, self.scratch, self.scratch)[:2])

    def _normalise(self, packed: TensorPacked, images: slice, cut: Norm, outputs: list[Output]) -> None:
        """Launch the kernel that normalises maps by their tiles' statistics."""
        blocks = (-(-cut.columns // (VECTOR * LANES)), -(-cut.pixels // (16 * ROWS)), images.stop - images.start)
        kernels(self.kind).normalise_map[blocks, LANES * ROWS, self.stream](
            self.statistics, packed.affine, *self._arrays(packed, images, outputs), cut, _targets(outputs)
        )

    def _finish(self, packed: TensorPacked, shape: Shape, outputs: list[Output]) -> None:
        """Launch the kernel that makes maps of partial sums."""
        norm, pixels, images = packed.layer.norm, shape.phases * shape.rows, slice(0, self.n)
        epilogue, share = MAPS, max(PART, -(-pixels // MOST_PARTS))
        if norm and pixels <= WHOLE:
            epilogue, share = NORMALISED, pixels
        elif norm:
            epilogue = STATISTICS
        parts, eps = -(-pixels // share), np.float32(norm.eps if norm else 0)
        to = [outputs[0].plain()] if epilogue == STATISTICS else outputs
        blocks = (-(-packed.columns // (VECTOR * FEW_LANES)), parts, self.n)
        finish(self.kind, epilogue)[blocks, LANES * ROWS, self.stream](
            self.scratch,
            packed.affine,
            *self._arrays(packed, images, to),
            self.statistics,
            Sums(shape.h, shape.w, shape.phases, packed.splits, packed.columns, share, eps),
            _targets(to),
        )
        if epilogue == STATISTICS:
            self._normalise(packed, images, Norm(pixels, 1, parts, share, packed.columns, eps), outputs)

    def _output(self, use: Use) -> Output:
        return Output(self.maps[use.map], Target(self.weights.maps[use.map].words, use.first, use.slope))


class Output(NamedTuple):
    """A map in which a layer's value is written, and where in each of its pixels."""

    array: Any
    target: Target

    def plain(self) -> Output:
        """The same place, for the value without activation."""
        return self._replace(target=self.target._replace(slope=np.float32(1)))


def _targets(outputs: list[Output]) -> Targets:
    """The two targets that kernels take."""
    return Targets(*(*(output.target for output in outputs), NO_TARGET, NO_TARGET)[:2])


_SHARED = ("transfer", "scratch", "statistics")


def _sizes(weights: TensorWeights, n: int, h: int, w: int) -> dict[str, int]:
    """Words of every map, and of what all layers share."""
    shapes = weights.generator.shapes(h, w)
    sizes = dict.fromkeys(_SHARED, 0)
    for name, at in weights.maps.items():
        map_h, map_w, _ = shapes[at.source]
        sizes[name] = n * (map_h + 2 * at.border) * (map_w + 2 * at.border) * at.words
    for name in {INPUT, *weights.uses, *weights.layers}:
        sizes["transfer"] = max(sizes["transfer"], n * int(np.prod(shapes[name])))
    for packed in weights.layers.values():
        shape = shape_of(weights, packed, h, w)
        tile = tile_of(weights, packed, shape)
        tiles = shape.phases * -(-shape.rows // min(tile.bm, PART))
        sizes["statistics"] = max(sizes["statistics"], 2 * n * tiles * packed.columns)
        if writes_sums(packed, shape, tile):
            sums = packed.splits * shape.phases * n * shape.rows * packed.columns
            sizes["scratch"] = max(sizes["scratch"], sums)
    return rounded(sizes)
