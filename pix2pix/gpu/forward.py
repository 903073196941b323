"""The walk over a generator's layers on tensor cores, for a number of images of one size: memory and launches.

A layer's value is written, activated, into the map of each layer that reads it, in words of the precision
(:mod:`pix2pix.gpu.ptx.packed_words`); the value itself, in float32, is kept only where it is asked for, or was given. Norms need the
statistics of a whole image: where the rows of one image fill tiles of the product, each tile leaves those of its rows,
and maps are normalised in place in a second pass, some images at a time, which so are still in the GPU's cache. What is
smaller, or whose sums blocks have shared, is finished from sums: by one block for the whole of some channels if the map
is small, else in parts that leave statistics too.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from ..model.generator import INPUT
from . import launches as _gpu_walk
from .kernels import maps as _tensor_maps
from .kernels import mma_gemm as _tensorcore
from .kernels.common import SIMULATED
from .kernels.hopper_gemm import HOPPER_TILES, SIMULATED_HOPPER_TILE, HopperTile, make_hopper_gemm
from .kernels.mma_gemm import SIMULATED_TENSOR_TILE, TENSOR_TILES, W_UNIT, TensorTile
from .launches import THREADS, Walk, cut, rounded
from .packing import TensorPacked, TensorWeights, Use
from .ptx.hopper import ROW
from .ptx.packed_words import RUN
from .tensor_maps import describe, of_map, of_weights

LANES, ROWS, FEW_LANES = (2, 2, 1) if SIMULATED else (8, 32, 4)
WHOLE = 64 if SIMULATED else 1024  # pixels of a map that one block normalises
MOST_PARTS = 65535  # of a grid
ONE_CHANNEL = (1, 1, 0, 1, 1, 0)  # of a pixel: how copy_channels copies an array
PART = 32 if SIMULATED else 256  # pixels of larger ones that a block finishes
CACHED = 1 << 12 if SIMULATED else 1 << 23  # words of a map that stay in the GPU's cache


@functools.cache
def product(tile: TensorTile | HopperTile, kind: int, leaves: int) -> Any:
    """The product's kernel for a tile."""
    if isinstance(tile, HopperTile):
        return make_hopper_gemm(tile, kind, leaves)
    return _tensorcore.make_tensor_gemm(tile, kind, leaves)


@functools.cache
def finish(kind: int, leaves: int) -> Any:
    """The kernel that finishes maps from sums."""
    return _tensor_maps.make_finish_map(FEW_LANES, LANES * ROWS // FEW_LANES, kind, leaves)


@functools.cache
def kernels(kind: int) -> SimpleNamespace:
    """All others. Compiled when they are first launched."""
    return SimpleNamespace(
        **vars(_gpu_walk.kernels()),
        write_map={as_bytes: _tensor_maps.make_write_map(THREADS, kind, as_bytes) for as_bytes in (False, True)},
        read_map=_tensor_maps.make_read_map(THREADS, kind),
        normalise_map=_tensor_maps.make_normalise_map(LANES, ROWS, kind),
    )


class Window(NamedTuple):
    """Which pixels make up a row of the product's left side; see :func:`make_tensor_gemm`."""

    side_y: int
    side_x: int
    zoom_y: int
    zoom_x: int
    origin: int
    step: int


ONE_PIXEL = Window(1, 1, 1, 1, 0, 1)
CONVOLUTION = Window(4, 4, 2, 2, -1, 1)
OF_PAIRS = Window(4, 2, 2, 1, 0, 1)
TRANSPOSED = Window(2, 2, 1, 1, 0, -1)


class Shape(NamedTuple):
    """A layer's product for one image: rows are pixels of h x w, for each parity."""

    h: int
    w: int
    parities: int

    @property
    def rows(self) -> int:
        """Rows of the product, for each parity."""
        return self.h * self.w


def shape_of(weights: TensorWeights, packed: TensorPacked, h: int, w: int) -> Shape:
    """The shape of a layer's product, for pictures of h x w."""
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


def tile_of(weights: TensorWeights, packed: TensorPacked, shape: Shape) -> TensorTile | HopperTile:
    """How blocks share a layer's product: in the form that its plan says, if that can do with the shape."""
    if packed.kind == "hopper" and weights.maps[packed.layer.name].words % ROW == 0:
        tile = SIMULATED_HOPPER_TILE if SIMULATED else HOPPER_TILES[packed.tile]
        if tile.box(shape.h, shape.w):
            return tile
    return SIMULATED_TENSOR_TILE if SIMULATED else TENSOR_TILES.get(packed.tile, TENSOR_TILES["128x128"])


def leaves_sums(packed: TensorPacked, shape: Shape, tile: TensorTile | HopperTile) -> bool:
    """Whether a layer's product leaves sums, that something else makes a map or a picture of."""
    is_small = packed.layer.norm is not None and shape.rows < tile.bm
    return packed.splits > 1 or is_small or packed.layer.activation == "tanh"


class TensorForward(Walk):
    """The walk in a precision of tensor cores."""

    def __init__(self, weights: TensorWeights, n: int, h: int, w: int, memory: Any, stream: Any) -> None:
        super().__init__(weights, n, h, w, stream)
        self.kind, self.shapes = weights.kind, self.generator.shapes(h, w)
        self.maps = cut(memory, _sizes(weights, n, h, w))
        self.transfer, self.scratch, self.statistics = (self.maps.pop(name) for name in _SHARED)
        self.boxes: dict[str, tuple[Any, Any]] = {}  # of layers whose product goes over boxes
        for name, packed in weights.layers.items():
            shape = shape_of(weights, packed, h, w)
            if isinstance(tile := tile_of(weights, packed, shape), HopperTile):
                self.boxes[name] = self._described(packed, shape, tile)
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
        shape = (self.n, images, h, w, channels, to.border, use.width, to.words, use.first, use.slope)
        count = self.n * (h + 2 * to.border) * (w + 2 * to.border) * use.width
        self._launch(kernels(self.kind).write_map[value.dtype == np.uint8], count, value, self.maps[use.map], *shape)

    # -- one layer --------------------------------------------------------------------------------------------

    def _compute(self, packed: TensorPacked, picture: Any, is_wanted: bool) -> None:
        layer = packed.layer
        if layer.activation == "tanh":
            self._last(packed, picture)
            return
        uses = self.weights.uses[layer.name]
        targets = [Target.of(self, use) for use in uses]
        if not is_wanted:
            self._fill(packed, targets)
            return
        self._fill(packed, [targets[0].plain()])  # first the value as it is, then what others make of it
        (h, w, channels), value = self.shapes[layer.name], self._value(layer.name)
        shape = (self.n * h * w, channels, targets[0].stride, targets[0].first)
        self._launch(kernels(self.kind).read_map, self.n * h * w * uses[0].width, targets[0].array, value, *shape)
        for use in uses:
            self._write(layer.name, use, value, self.n)

    def _last(self, packed: TensorPacked, picture: Any) -> None:
        """The products of every pixel with all taps, then the picture."""
        self._multiply(packed, slice(0, self.n), _tensorcore.SUMS, ())
        as_bytes, scale = picture.dtype == np.uint8, np.float32(self.generator.output_scale)
        shape = (self.n, self.h, self.w, packed.columns, packed.layer.filters, scale)
        kernel = kernels(self.kind).to_picture[True, as_bytes]
        self._launch(kernel, self.n * self.h * self.w, self.scratch, packed.bias, picture, *shape)

    def _fill(self, packed: TensorPacked, targets: list[Target]) -> None:
        """Compute a layer's value into the maps of its readers."""
        norm, shape = packed.layer.norm, shape_of(self.weights, packed, self.h, self.w)
        tile = tile_of(self.weights, packed, shape)
        if leaves_sums(packed, shape, tile):
            self._multiply(packed, slice(0, self.n), _tensorcore.SUMS, ())
            self._finish(packed, shape, targets)
        elif norm:
            step = max(1, CACHED // (shape.rows * shape.parities * packed.columns))
            for first in range(0, self.n, step):
                images = slice(first, min(first + step, self.n))
                self._multiply(packed, images, _tensorcore.STATISTICS, [targets[0].plain()])
                self._normalise(packed, images, shape.parities, -(-shape.rows // tile.bm), tile.bm, targets)
        else:
            self._multiply(packed, slice(0, self.n), _tensorcore.MAPS, targets)

    def _multiply(self, packed: TensorPacked, images: slice, leaves: int, targets: Any) -> None:
        """Launch the product for some images."""
        shape = shape_of(self.weights, packed, self.h, self.w)
        tile = tile_of(self.weights, packed, shape)
        if isinstance(tile, HopperTile):
            tiles, operands, pixels = self._boxed(packed, images, shape, tile)
        else:
            groups = images.stop - images.start if leaves == _tensorcore.STATISTICS else 1
            tiles, operands, pixels = self._in_rows(packed, images, shape, tile, groups)
        kernel = product(tile, self.kind, leaves)
        arguments = (
            *operands,
            packed.bias,
            *self._outputs(packed, images, targets),
            self.statistics,
            *pixels,
            shape.h,
            shape.w,
            packed.columns,
            shape.parities,
            packed.splits,
            *_places(targets),
        )
        if tile.shared:
            self.weights.device.allow_shared(kernel, arguments, tile.shared)
        blocks = (tiles, -(-packed.columns // tile.bn), shape.parities * packed.splits)
        kernel[blocks, tile.threads, self.stream, tile.shared](*arguments)

    def _in_rows(
        self, packed: TensorPacked, images: slice, shape: Shape, tile: TensorTile, groups: int
    ) -> tuple[int, tuple[Any, ...], tuple[int, ...]]:
        """How the product goes over pixels in rows, of which tiles don't cross the borders of `groups` of images.

        Number of tiles, operands and parameters of :func:`make_tensor_gemm`.
        """
        source, window = self.weights.maps[packed.layer.name], window_of(self.weights, packed)
        h, w, _ = self.shapes[packed.layer.inputs[0].layer]
        words = source.words
        if source.border:
            h, w, words = h + 2, w // 2 + 1, 2 * words
        rows = (images.stop - images.start) * shape.rows // groups
        tiles = -(-rows // tile.bm)
        map_of_images = self.maps[packed.layer.name][images.start * h * w * words :]
        return groups * tiles, (map_of_images, packed.weights), (h, w, words, *window, rows, tiles)

    def _boxed(
        self, packed: TensorPacked, images: slice, shape: Shape, tile: HopperTile
    ) -> tuple[int, tuple[Any, ...], tuple[int, ...]]:
        """How it goes over pixels in boxes: number of tiles, operands and parameters of :func:`make_hopper_gemm`."""
        words, window = self.weights.maps[packed.layer.name].words, window_of(self.weights, packed)
        box = tile.box(shape.h, shape.w)
        assert box is not None
        n = images.stop - images.start
        tiles = -(-n // box.images) * (shape.h // box.h) * (shape.w // box.w)
        taps = window.side_y, window.zoom_y, window.origin, window.step
        sides = box.h.bit_length() - 1, box.w.bit_length() - 1
        return tiles, self.boxes[packed.layer.name], (words, *taps, images.start, n, *sides)

    def _described(self, packed: TensorPacked, shape: Shape, tile: HopperTile) -> tuple[Any, Any]:
        """Boxes of what a layer reads, and of its weights."""
        device, words = self.weights.device, self.weights.maps[packed.layer.name].words
        h, w, _ = self.shapes[packed.layer.inputs[0].layer]
        box, zoom = tile.box(shape.h, shape.w), window_of(self.weights, packed).zoom_y
        assert box is not None
        rows = shape.parities * -(-packed.columns // W_UNIT) * W_UNIT
        maps = of_map(self.maps[packed.layer.name], self.n, h, w, words, zoom, box)
        weights = of_weights(packed.weights, rows, packed.weights.size // rows, tile.bn)
        return describe(device, maps), describe(device, weights)

    def _outputs(self, packed: TensorPacked, images: slice, targets: Any) -> tuple[Any, Any]:
        """Where the images' values go: two arrays, of which a kernel uses as many as there are targets."""
        h, w, _ = self.shapes[packed.layer.name]
        arrays = [target.array[images.start * h * w * target.stride :] for target in targets]
        return tuple((*arrays, self.scratch, self.scratch)[:2])

    def _normalise(
        self, packed: TensorPacked, images: slice, parities: int, tiles: int, tile: int, targets: list[Target]
    ) -> None:
        """Launch what normalises maps whose tiles have left statistics."""
        assert packed.layer.norm is not None
        h, w, _ = self.shapes[packed.layer.name]
        blocks = (-(-packed.columns // (RUN * LANES)), -(-h * w // (16 * ROWS)), images.stop - images.start)
        kernels(self.kind).normalise_map[blocks, LANES * ROWS, self.stream](
            self.statistics,
            packed.gamma,
            packed.beta,
            *self._outputs(packed, images, targets),
            h * w,
            parities,
            tiles,
            tile,
            packed.columns,
            np.float32(packed.layer.norm.eps),
            *_places(targets),
        )

    def _finish(self, packed: TensorPacked, shape: Shape, targets: list[Target]) -> None:
        """Launch what makes maps of sums."""
        norm, pixels = packed.layer.norm, shape.parities * shape.rows
        leaves, share = _tensor_maps.MAPS, max(PART, -(-pixels // MOST_PARTS))
        if norm and pixels <= WHOLE:
            leaves, share = _tensor_maps.NORMALISED, pixels
        elif norm:
            leaves = _tensor_maps.STATISTICS
        parts = -(-pixels // share)
        images = slice(0, self.n)
        to = [targets[0].plain()] if leaves == _tensor_maps.STATISTICS else targets
        blocks = (-(-packed.columns // (RUN * FEW_LANES)), parts, self.n)
        finish(self.kind, leaves)[blocks, LANES * ROWS, self.stream](
            self.scratch,
            packed.bias,
            packed.gamma,
            packed.beta,
            *self._outputs(packed, images, to),
            self.statistics,
            shape.h,
            shape.w,
            shape.parities,
            packed.splits,
            packed.columns,
            share,
            np.float32(norm.eps if norm else 0),
            *_places(to),
        )
        if leaves == _tensor_maps.STATISTICS:
            self._normalise(packed, images, 1, parts, share, targets)


class Target(NamedTuple):
    """Words of a map where a layer's value goes, and through which leaky ReLU."""

    array: Any
    stride: int
    first: int
    slope: np.float32

    @classmethod
    def of(cls, forward: TensorForward, use: Use) -> Target:
        """Where one of a value's readers reads it."""
        return cls(forward.maps[use.map], forward.weights.maps[use.map].words, use.first, use.slope)

    def plain(self) -> Target:
        """The same place, for a value that is not activated yet."""
        return self._replace(slope=np.float32(1))


def _places(targets: Any) -> tuple[Any, ...]:
    """Kernels' parameters of two targets; the stride of one that isn't there is 0."""
    nothing = (0, 0, np.float32(1))
    first, second = (*(target[1:] for target in targets), nothing, nothing)[:2]
    return *first, *second


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
        tiles = shape.parities * -(-shape.rows // min(tile.bm, PART))
        sizes["statistics"] = max(sizes["statistics"], 2 * n * tiles * packed.columns)
        if leaves_sums(packed, shape, tile):
            sums = packed.splits * shape.parities * n * shape.rows * packed.columns
            sizes["scratch"] = max(sizes["scratch"], sums)
    return rounded(sizes)
