"""A layer's matrix product on the GPU: its shape, window and tile, and the launch of its kernel.

Which kernel computes it, the plan says: mma_gemm or hopper_gemm on tensor cores, simt_gemm in float32. The readable
route, im2col, is a chain of kernels around simt_gemm.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..plans.algorithms import Algorithm, multiplies_all_taps, multiplies_columns
from .device import Device
from .jit import SIMULATED, THREADS, launch_over, made_once
from .kernels.averages import make_average_sums
from .kernels.epilogue import PARTIAL_SUMS, STATISTICS
from .kernels.hopper_gemm import HOPPER_TILES, SIMULATED_HOPPER_TILE, HopperTile, make_hopper_gemm
from .kernels.im2col import make_im2col, make_insert_zeros
from .kernels.mma_gemm import MMA_TILES, SIMULATED_MMA_TILE, MmaTile, make_mma_gemm
from .kernels.parameters import (
    NO_TARGET,
    Axis,
    BoxGrid,
    Gemm,
    Grid,
    Inserted,
    Norm,
    Source,
    Target,
    Targets,
    Window,
)
from .kernels.simt_gemm import SIMT_TILES, SIMULATED_SIMT_TILE, SimtTile, make_simt_gemm
from .packing import DeviceWeights, PackedOp
from .ptx.fragments import CHUNK, COLUMN_UNIT, SWIZZLE_ROW, VECTOR
from .ptx.packed_words import VECTOR_WORDS
from .tensor_maps import encode, source_map, weight_map
from .windows import ONE_PIXEL, square, window_of

Tile = MmaTile | HopperTile | SimtTile
CACHED_WORDS = 1 << 12 if SIMULATED else 1 << 23  # words of a map that stay in the GPU's cache
MATRIX_WORDS = 1 << 13 if SIMULATED else 1 << 26  # of im2col's matrix that are in memory at a time


@made_once
def gemm_kernel(tile: Tile, kind: int, epilogue: int) -> Any:
    """The product's kernel for a tile. Compiled at its first launch."""
    if isinstance(tile, SimtTile):
        return make_simt_gemm(tile, epilogue)
    if isinstance(tile, HopperTile):
        return make_hopper_gemm(tile, kind, epilogue)
    return make_mma_gemm(tile, kind, epilogue)


@made_once
def im2col_kernels() -> tuple[Any, Any]:
    """insert_zeros and im2col."""
    return make_insert_zeros(THREADS), make_im2col(THREADS)


@made_once
def average_kernel() -> Any:
    """average_sums."""
    return make_average_sums(THREADS)


class Output(NamedTuple):
    """A map in which a layer's value is written, and where in each of its pixels."""

    array: Any
    target: Target

    def plain(self) -> Output:
        """The same place, for the value without activation."""
        return self._replace(target=self.target._replace(slope=NO_TARGET.slope))

    def from_pixel(self, pixel: int) -> Output:
        """The same place in the map from a pixel on."""
        return self._replace(array=self.array[pixel * self.target.stride :])


def arrays_and_targets(outputs: list[Output], nothing: Any) -> tuple[Any, Any, Targets]:
    """out, out2 and targets of kernels; `nothing` is an array for those that are not written."""
    arrays = (*(output.array for output in outputs), nothing, nothing)
    targets = (*(output.target for output in outputs), NO_TARGET, NO_TARGET)
    return arrays[0], arrays[1], Targets(targets[0], targets[1])


class Shape(NamedTuple):
    """A layer's product for one image: rows are the pixels of h x w, for each phase."""

    h: int
    w: int
    phases: int

    @property
    def rows(self) -> int:
        """Rows of the product, for each phase."""
        return self.h * self.w


class Memory(NamedTuple):
    """What a layer's launches work with: its source in `maps`, and what all layers share."""

    device: Device
    stream: Any
    maps: Any
    tensor_maps: tuple[Any, Any] | None
    scratch: Any
    statistics: Any


@dataclass(frozen=True, slots=True)
class Product:
    """A layer's product for n images. Without their maps, it says how much memory it needs."""

    packed: PackedOp
    kind: int
    n: int
    source: Source  # what one image's rows are read from
    shape: Shape
    window: Window
    tile: Tile

    @classmethod
    def of(cls, weights: DeviceWeights, packed: PackedOp, n: int, source_size: tuple[int, int]) -> Product:
        """The product of an operation whose sources are maps of `source_size`, (h, w)."""
        (h, w), op, at = source_size, packed.op, weights.maps[packed.op.name]
        source, s = Source(*at.size(h, w), at.words), op.sampling
        shape, window = Shape(*s.base_grid(h, w), s.scale**2), window_of(s, at.border)
        if at.pairs:  # the source's columns are pairs of pixels
            source = Source(source.h, source.w // 2, 2 * at.words)
            pairs = Axis(s.stride // 2, s.kernel // 2, 0, s.kernel // 2, 0)
            window = Window(window.y, pairs, s.kernel * s.kernel // 2)
        elif s.transposed and packed.algorithm.kind == "im2col":
            shape, window = Shape(*s.output_size(h, w), 1), square(s.kernel)
        elif multiplies_all_taps(op):
            shape, window = Shape(h, w, 1), ONE_PIXEL
        elif packed.algorithm.kind != "im2col" and multiplies_columns(op):
            column = window.x._replace(taps=1, taps2=1)
            shape, window = Shape(shape.h, shape.w + s.kernel - 1, 1), Window(window.y, column, s.kernel)
        return cls(
            packed, weights.kind, n, source, shape, window, _tile(packed.algorithm, source, window.y.stride, shape)
        )

    @property
    def writes_sums(self) -> bool:
        """Whether it writes partial sums, from which another kernel makes maps or an image."""
        op, algorithm, is_small = self.packed.op, self.packed.algorithm, self.shape.rows < self.tile.bm
        by_im2col, has_norm = algorithm.kind == "im2col", self.normalises
        is_leaky, is_average = has_norm and op.epilogue.inner_slope != 1, self.packed.averaged is not None
        has_more = op.makes_image or (has_norm and is_small) or is_leaky or is_average
        return by_im2col or algorithm.splits > 1 or has_more

    @property
    def normalises(self) -> bool:
        """Whether a norm by the map's own statistics follows."""
        norm = self.packed.op.epilogue.norm
        return norm is not None and not norm.fixed

    @property
    def pixels(self) -> int:
        """Pixels of one image's result."""
        return self.shape.rows * self.shape.phases

    @property
    def images_at_once(self) -> int:
        """Images to compute before the next kernel reads their maps, which then still are in the GPU's cache."""
        return self.n if self.writes_sums else min(self.n, max(1, CACHED_WORDS // (self.pixels * self.packed.columns)))

    def chunks(self) -> Iterator[slice]:
        """The images, some at a time."""
        for first in range(0, self.n, self.images_at_once):
            yield slice(first, min(first + self.images_at_once, self.n))

    def tiling(self) -> Norm:
        """How the product cuts a map for its statistics."""
        norm, rows = self.packed.op.epilogue.norm, self.tile.bm
        eps = np.float32(norm.eps if norm else 0)
        return Norm(self.pixels, self.shape.phases, -(-self.shape.rows // rows), rows, self.packed.columns, eps)

    @property
    def result_words(self) -> int:
        """Words of each pixel of the result in scratch, which pad_map reads."""
        return self.packed.columns // VECTOR * VECTOR_WORDS[self.kind]

    @property
    def sums_size(self) -> int:
        """float32 elements of the partial sums."""
        return self.packed.algorithm.splits * self.shape.phases * self.n * self.shape.rows * self.packed.columns

    @property
    def inserted(self) -> Inserted:
        """A transposed convolution's source with zeros inserted, for im2col."""
        s, last = self.packed.op.sampling, self.packed.op.sampling.kernel - 1
        top, left = s.padding[:2]
        return Inserted(self.shape.h + last, self.shape.w + last, s.stride, last - top, last - left)

    @property
    def scratch_size(self) -> int:
        """Words of scratch: the partial sums, then what im2col needs or, later, the result of some images."""
        result = self.images_at_once * self.pixels * self.result_words if self.packed.is_padded else 0
        matrix = 0
        if self.packed.algorithm.kind == "im2col":
            depth = self.window.taps * self.source.words
            matrix = self._inserted_size + min(self.n * self.shape.rows * depth, max(MATRIX_WORDS, depth))
        return self.result_at + max(matrix, result)

    @property
    def result_at(self) -> int:
        """Where in scratch the result of some images lies: behind the partial sums."""
        return self.sums_size if self.writes_sums else 0

    @property
    def _inserted_size(self) -> int:
        inserted = self.inserted
        return self.n * inserted.h * inserted.w * self.source.words if self.packed.op.sampling.transposed else 0

    def tensor_maps(self, device: Device, maps: Any) -> tuple[Any, Any] | None:
        """Tensor maps of the source, which `maps` holds, and of the weights, for hopper_gemm."""
        if not isinstance(self.tile, HopperTile):
            return None
        box = self.tile.box(self.shape.h, self.shape.w)
        assert box is not None
        weights, rows = self.packed.weights, self.shape.phases * -(-self.packed.columns // COLUMN_UNIT) * COLUMN_UNIT
        source = source_map(maps, (self.n, *self.source), self.window.y.stride, box)
        matrix = weight_map(weights, rows, weights.size // rows, self.tile.bn)
        return encode(device, source), encode(device, matrix)

    def launch(self, memory: Memory, images: slice, epilogue: int, outputs: list[Output]) -> None:
        """Compute some images: partial sums into memory.scratch, or maps into `outputs`."""
        shape, packed, n = self.shape, self.packed, images.stop - images.start
        if memory.tensor_maps:
            assert isinstance(self.tile, HopperTile)
            operands, box = memory.tensor_maps, self.tile.box(shape.h, shape.w)
            assert box is not None
            tiles = -(-n // box.images) * (shape.h // box.h) * (shape.w // box.w)
            log_h, log_w = box.h.bit_length() - 1, box.w.bit_length() - 1
            grid: Grid | BoxGrid = BoxGrid(shape.h, shape.w, images.start, n, log_h, log_w)
        else:
            groups = n if epilogue == STATISTICS else 1  # of rows; tiles do not cross their borders
            rows = n * shape.rows // groups
            grid = Grid(shape.h, shape.w, rows, -(-rows // self.tile.bm))
            tiles = groups * grid.tiles
            first = images.start * self.source.h * self.source.w * self.source.words
            operands = memory.maps[first:], packed.weights
        gemm = Gemm(self.source, self.window, grid, packed.columns, shape.phases, packed.algorithm.splits)
        self._launch(memory, tiles, epilogue, operands, gemm, outputs)

    def launch_im2col(self, memory: Memory) -> None:
        """Compute the partial sums of all images from the matrix of patches, some rows of it at a time."""
        insert_zeros, im2col = im2col_kernels()
        shape, source, maps = self.shape, self.source, memory.maps
        scratch = memory.scratch[self.sums_size :]
        if self.packed.op.sampling.transposed:
            size, inserted = self._inserted_size, self.inserted
            launch_over(insert_zeros, memory.stream, size // CHUNK, maps, scratch, self.n, source, inserted)
            source = Source(inserted.h, inserted.w, source.words)
            maps, scratch = scratch, scratch[size:]
        depth, all_rows = self.window.taps * source.words, self.n * shape.rows
        step = max(1, MATRIX_WORDS // depth)
        for begin in range(0, all_rows, step):
            rows = min(step, all_rows - begin)
            grid = Grid(shape.h, shape.w, rows, -(-rows // self.tile.bm))
            arguments = maps, scratch, begin, rows, source, self.window, grid
            launch_over(im2col, memory.stream, rows * depth // CHUNK, *arguments)
            gemm = Gemm(Source(1, rows, depth), ONE_PIXEL, grid._replace(h=1, w=rows), self.packed.columns, 1, 1)
            sums = memory._replace(scratch=memory.scratch[begin * self.packed.columns :])
            self._launch(sums, grid.tiles, PARTIAL_SUMS, (scratch, self.packed.weights), gemm, [])

    def launch_average(self, memory: Memory) -> None:
        """Take the padding out of the partial sums of all images, which memory.scratch holds."""
        (h, w, _), splits, columns = self.shape, self.packed.algorithm.splits, self.packed.columns
        gemm = Gemm(self.source, self.window, Grid(h, w, self.n * h * w, 1), columns, 1, splits)
        launch_over(
            average_kernel(), memory.stream, self.sums_size // CHUNK, memory.scratch, self.packed.averaged, gemm
        )

    def _launch(
        self, memory: Memory, tiles: int, epilogue: int, operands: tuple[Any, Any], gemm: Gemm, outputs: list[Output]
    ) -> None:
        kernel, affine = gemm_kernel(self.tile, self.kind, epilogue), self.packed.affine
        out, out2, targets = arrays_and_targets(outputs, memory.scratch)
        arguments = (*operands, affine, out, out2, memory.statistics, gemm, targets)
        shared = self.tile.shared if isinstance(self.tile, HopperTile) else 0  # bytes of dynamic shared memory
        if shared:
            memory.device.allow_shared(kernel, arguments, shared)
        blocks = (tiles, -(-gemm.columns // self.tile.bn), gemm.phases * gemm.splits)
        kernel[blocks, self.tile.threads, memory.stream, shared](*arguments)


def _tile(algorithm: Algorithm, source: Source, stride: int, shape: Shape) -> Tile:
    """The tile that the layer's plan says; mma_gemm's 128x128 where hopper_gemm cannot do the shape."""
    size = algorithm.tile or (128, 128)
    if algorithm.kind in ("implicit", "im2col"):
        return SIMULATED_SIMT_TILE if SIMULATED else SIMT_TILES[size]
    if algorithm.kind == "hopper" and source.words % SWIZZLE_ROW == source.h % stride == source.w % stride == 0:
        tile = SIMULATED_HOPPER_TILE if SIMULATED else HOPPER_TILES[size]
        if tile.box(shape.h, shape.w):
            return tile
    return SIMULATED_MMA_TILE if SIMULATED else MMA_TILES.get(size, MMA_TILES[128, 128])
