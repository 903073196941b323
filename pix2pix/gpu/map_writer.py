"""What fills maps on one GPU apart from products: launches of kernels that finish, normalise, pad and enlarge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from .jit import SIMULATED, THREADS, launch_over, made_once
from .kernels.epilogue import LEAKY_STATISTICS, MAPS, NORMALISED, STATISTICS
from .kernels.maps import make_copy_values, make_read_map, make_to_image, make_write_map
from .kernels.normalise import make_finish_map, make_group_statistics, make_normalise_map
from .kernels.padding import make_pad_map, make_resize_map
from .kernels.parameters import ZEROS, Frame, Norm, Padding, Residual, Resizing, Sums, Target, Values
from .memory import PART_PIXELS
from .packing import DeviceWeights, MapOf, PackedOp, Use
from .products import Output, Product, arrays_and_targets
from .ptx.fragments import VECTOR
from .ptx.packed_words import ELEMENTS

LANES, ROWS, FINISH_LANES = (2, 2, 1) if SIMULATED else (8, 32, 4)
ONE_BLOCK_PIXELS = 64 if SIMULATED else 1024  # pixels of a map that one block normalises
MOST_PARTS = 65535  # of a grid


@made_once
def finish_kernel(kind: int, epilogue: int) -> Any:
    """The kernel that finishes maps from partial sums. Compiled at its first launch."""
    return make_finish_map(FINISH_LANES, LANES * ROWS // FINISH_LANES, kind, epilogue)


@made_once
def kernels(kind: int) -> SimpleNamespace:
    """All other kernels for a kind of packed word."""
    return SimpleNamespace(
        copy_values=make_copy_values(THREADS),
        write_map={as_bytes: make_write_map(THREADS, kind, as_bytes) for as_bytes in (False, True)},
        read_map=make_read_map(THREADS, kind),
        group_statistics=make_group_statistics(THREADS),
        normalise_map=make_normalise_map(LANES, ROWS, kind),
        pad_map={normalises: make_pad_map(LANES, ROWS, kind, normalises) for normalises in (False, True)},
        resize_map=make_resize_map(LANES, ROWS, kind),
        to_image={
            (taps, as_bytes): make_to_image(THREADS, taps, as_bytes)
            for taps in (False, True)
            for as_bytes in (False, True)
        },
    )


def frame_of(h: int, w: int, at: MapOf) -> Frame:
    """The frame of a map of an h x w value."""
    return Frame(h, w, at.factor, at.border, at.fill)


def resizing(frame: Frame, target: Target, words: int, corners: bool) -> Resizing:
    """What resize_map is told of maps of `words` that it enlarges, with their corners aligned or not."""
    if corners:
        steps = [(size - 1) / max(1, size * frame.factor - 1) for size in (frame.h, frame.w)]
        return Resizing(frame, target, words, np.float32(steps[0]), np.float32(steps[1]), np.float32(0))
    step = 1 / frame.factor
    return Resizing(frame, target, words, np.float32(step), np.float32(step), np.float32(step / 2 - 0.5))


@dataclass(frozen=True, slots=True)
class MapWriter:
    """Fills the maps of n images that the readers of values have. Scratch and statistics are shared with products."""

    weights: DeviceWeights
    n: int
    shapes: Mapping[str, tuple[int, int, int]]
    maps: Mapping[str, Any]
    stream: Any
    scratch: Any
    statistics: Any

    def write(self, name: str, value: Any, images: int) -> None:
        """A value (images * h * w * channels) in the GPU's memory, into the maps of its readers; one image for all."""
        (h, w, channels), kind = self.shapes[name], self.weights.kind
        shape = Values(self.n, images, channels)
        for use in self.weights.uses.get(name, ()):
            to, array = self.weights.maps[use.map], self.maps[use.map]
            target, frame = Target(to.words, use.first, use.slope), frame_of(h, w, to)
            if to.interpolates:
                target, frame, array = Target(use.width, 0, np.float32(1)), Frame(h, w, 1, 0, ZEROS), self.scratch
            pixels = (h * frame.factor + 2 * frame.border) * (w * frame.factor + 2 * frame.border)
            count = self.n * pixels * use.width
            arguments = value, array, shape, frame, use.width, target
            launch_over(kernels(kind).write_map[value.dtype == np.uint8], self.stream, count, *arguments)
            if to.interpolates:
                self._resize(name, slice(0, self.n), self.scratch, use)

    def normalise(self, packed: PackedOp, images: int, tiling: Norm, outputs: list[Output]) -> None:
        """Normalise the maps of some images by their tiles' statistics."""
        blocks = (*_blocks(tiling.columns, tiling.pixels), images)
        out, out2, targets = arrays_and_targets(outputs, self.scratch)
        kernels(self.weights.kind).normalise_map[blocks, LANES * ROWS, self.stream](
            self.statistics, packed.affine, out, out2, tiling, targets
        )

    def group_statistics(self, packed: PackedOp, images: int, tiling: Norm) -> None:
        """Make the statistics of some images' tiles those of the norm's groups, if it has groups."""
        norm = packed.op.epilogue.norm
        if norm and norm.groups:
            kernel, count = kernels(self.weights.kind).group_statistics, images * tiling.phases * tiling.tiles
            sizes = images, norm.groups, packed.op.filters // norm.groups
            launch_over(kernel, self.stream, count * norm.groups, self.statistics, tiling, *sizes)

    def finish(self, product: Product, outputs: list[Output]) -> Norm | None:
        """Make maps of partial sums. Returns how they were cut for their statistics, if they are to be normalised."""
        packed, shape, pixels = product.packed, product.shape, product.pixels
        norm, inner_slope = packed.op.epilogue.norm if product.normalises else None, packed.op.epilogue.inner_slope
        result, share = MAPS, max(PART_PIXELS, -(-pixels // MOST_PARTS))
        if norm and pixels <= ONE_BLOCK_PIXELS and not (packed.is_padded or norm.groups):
            result, share = NORMALISED, pixels
        elif norm:
            result = STATISTICS if inner_slope == 1 else LEAKY_STATISTICS
            outputs = [outputs[0].plain()]
        parts, eps, slope = -(-pixels // share), np.float32(norm.eps if norm else 0), np.float32(inner_slope)
        out, out2, targets = arrays_and_targets(outputs, self.scratch)
        sums = Sums(shape.h, shape.w, shape.phases, packed.algorithm.splits, packed.columns, share, eps, slope)
        blocks = (-(-packed.columns // (VECTOR * FINISH_LANES)), parts, self.n)
        finish_kernel(self.weights.kind, result)[blocks, LANES * ROWS, self.stream](
            self.scratch, packed.affine, out, out2, self.statistics, sums, targets
        )
        if result in (MAPS, NORMALISED):
            return None
        tiling = Norm(pixels, 1, parts, share, packed.columns, eps)
        self.group_statistics(packed, self.n, tiling)
        return tiling

    def pad(self, product: Product, images: slice, tiling: Norm | None, result: Any) -> None:
        """Make the maps of all readers of the result of some images, which is normalised if a tiling is given."""
        name = product.packed.op.name
        h, w, _ = self.shapes[name]
        interpolating = []
        for use in self.weights.uses[name]:
            to = self.weights.maps[use.map]
            if to.interpolates:
                interpolating.append(use)
                continue
            target, out = Target(to.words, use.first, use.slope), self._map_from(use, images, h, w)
            self._pad(product, images, tiling, (result, out), (frame_of(h, w, to), target))
        if interpolating:
            self.complete(product, images, tiling, result)
        for use in interpolating:
            self._resize(name, images, result, use)

    def complete(self, product: Product, images: slice, tiling: Norm | None, result: Any) -> None:
        """Make the result of some images the value: normalised if a tiling is given, with the residual."""
        h, w, _ = self.shapes[product.packed.op.name]
        target = Target(product.result_words, 0, np.float32(1))
        self._pad(product, images, tiling, (result, result), (Frame(h, w, 1, 0, ZEROS), target))

    def _map_from(self, use: Use, images: slice, h: int, w: int) -> Any:
        """A reader's map of an h x w value from the first of the images on."""
        to = self.weights.maps[use.map]
        map_h, map_w = to.size(h, w)
        return self.maps[use.map][images.start * map_h * map_w * to.words :]

    def _pad(
        self,
        product: Product,
        images: slice,
        tiling: Norm | None,
        arrays: tuple[Any, Any],
        to: tuple[Frame, Target],
    ) -> None:
        """Launch pad_map, from the first array to the second."""
        packed, (frame, target), (result, out) = product.packed, to, arrays
        h, w = frame.h, frame.w
        read, residual = Residual(0, 0, 0), self.scratch
        if packed.residual:
            at = self.weights.maps[packed.residual.map]
            read = Residual(at.words, packed.residual.first, at.border)
            residual = self._map_from(packed.residual, images, h, w)
        shape = tiling or Norm(h * w, 1, 1, h * w, packed.columns, np.float32(0))
        pixels = (h * frame.factor + 2 * frame.border) * (w * frame.factor + 2 * frame.border)
        blocks = (*_blocks(packed.columns, pixels), images.stop - images.start)
        kernels(self.weights.kind).pad_map[tiling is not None][blocks, LANES * ROWS, self.stream](
            result, self.statistics, packed.affine, residual, out, shape, Padding(frame, target, read)
        )

    def _resize(self, name: str, images: slice, result: Any, use: Use) -> None:
        """Launch resize_map: from the value of some images in packed words to a reader's map."""
        h, w, _ = self.shapes[name]
        to = self.weights.maps[use.map]
        target, corners = Target(to.words, use.first, use.slope), to.upsampling == "bilinear-corners"
        parameters = resizing(frame_of(h, w, to), target, use.width, corners)
        map_h, map_w = to.size(h, w)
        blocks = (*_blocks(use.width * ELEMENTS[self.weights.kind], map_h * map_w), images.stop - images.start)
        kernels(self.weights.kind).resize_map[blocks, LANES * ROWS, self.stream](
            result, self._map_from(use, images, h, w), parameters
        )


def _blocks(columns: int, pixels: int) -> tuple[int, int]:
    """Blocks for the channels, and for the parts, of each image's map."""
    return -(-columns // (VECTOR * LANES)), -(-pixels // (16 * ROWS))
