"""Operations on one GPU, for a number of images of one size: memory and launches.

A layer's value is written, activated, into the map of each layer that reads it, in packed words of the precision
(:mod:`pix2pix.gpu.ptx.packed_words`). The value itself is kept in float32 only where it is asked for, or was given.

Norms need the statistics of a whole image. Where an image's rows fill tiles of the product, the product writes each
tile's statistics, and a second kernel normalises the map in place: for a few images at a time, so that their maps are
still in the GPU's cache. Smaller maps, and sums that blocks share, are finished from partial sums: a small map by one
block that sees it whole, a larger one in parts that write statistics too.

Where a reader's map is padded by reflection or enlarged, or a residual is added, the result lies in scratch at first: a
last kernel normalises it and writes the reader's map.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

from ..engines.execution import NEVER, Backend, Context
from ..model.generator import INPUT
from ..model.lowering import Op
from .device import Device
from .jit import SIMULATED, THREADS, launch_over
from .kernels.epilogue import LEAKY_STATISTICS, MAPS, NORMALISED, PARTIAL_SUMS, STATISTICS
from .kernels.maps import make_copy_values, make_read_map, make_to_image, make_write_map
from .kernels.normalise import make_finish_map, make_normalise_map, make_pad_map
from .kernels.parameters import ZEROS, Frame, Images, Norm, Padding, Residual, Sums, Target, Values
from .memory import PART_PIXELS, SHARED, buffer_sizes, cut, products_of
from .packing import DeviceWeights, PackedOp, Use, multiplies_all_taps
from .products import Memory, Output, Product, arrays_and_targets
from .ptx.fragments import VECTOR
from .ptx.packed_words import VECTOR_WORDS

LANES, ROWS, FINISH_LANES = (2, 2, 1) if SIMULATED else (8, 32, 4)
ONE_BLOCK_PIXELS = 64 if SIMULATED else 1024  # pixels of a map that one block normalises
MOST_IMAGES = MOST_PARTS = 65535  # of a grid


@functools.cache
def finish_kernel(kind: int, epilogue: int) -> Any:
    """The kernel that finishes maps from partial sums. Compiled at its first launch."""
    return make_finish_map(FINISH_LANES, LANES * ROWS // FINISH_LANES, kind, epilogue)


@functools.cache
def kernels(kind: int) -> SimpleNamespace:
    """All other kernels for a kind of packed word."""
    return SimpleNamespace(
        copy_values=make_copy_values(THREADS),
        write_map={as_bytes: make_write_map(THREADS, kind, as_bytes) for as_bytes in (False, True)},
        read_map=make_read_map(THREADS, kind),
        normalise_map=make_normalise_map(LANES, ROWS, kind),
        pad_map={normalises: make_pad_map(LANES, ROWS, kind, normalises) for normalises in (False, True)},
        to_image={
            (taps, as_bytes): make_to_image(THREADS, taps, as_bytes)
            for taps in (False, True)
            for as_bytes in (False, True)
        },
    )


class GpuBackend(Backend["GpuContext"]):
    """Packed weights on one GPU. Memory is counted in words of 32 bits."""

    most_images = MOST_IMAGES

    def __init__(self, weights: DeviceWeights, device: Device, stream: Any, outward: Any) -> None:
        self.weights, self.device, self.stream, self._outward = weights, device, stream, outward

    def size(self, n: int, h: int, w: int) -> int:
        return sum(buffer_sizes(self.weights, n, h, w).values())

    def allocate(self, size: int) -> Any:
        return self.device.empty(size)

    def context(self, n: int, h: int, w: int, memory: Any) -> GpuContext:
        return GpuContext(self, n, h, w, memory)

    def synchronize(self) -> None:
        self.stream.synchronize()
        self._outward.synchronize()

    def release(self) -> None:
        self.device.release()


class GpuContext(Context):
    """The maps of n images of h x w, and the launches that fill them.

    Every launch goes to one stream, in the order of the operations, so that any of them can be recorded as a graph.
    """

    def __init__(self, backend: GpuBackend, n: int, h: int, w: int, memory: Any) -> None:
        weights = backend.weights
        self.n, self.h, self.w, self.weights = n, h, w, weights
        self.device, self.stream, self.generator = backend.device, backend.stream, weights.generator
        self.constants: dict[str, Any] = {}  # by name: (h * w * channels) in the GPU's memory
        self.buffers: list[Any] = []  # staging buffers that are not in use
        self.image: Any = None  # where the output goes: (n * h * w * channels), uint8 or float32
        self._graphs: dict[Any, Callable[[], None]] = {}
        self.kind, self.shapes = weights.kind, self.generator.shapes(h, w)
        self.maps = cut(memory, buffer_sizes(weights, n, h, w))
        self._output, self.scratch, self.statistics = (self.maps.pop(name) for name in SHARED)
        self.products = products_of(weights, n, h, w)
        self.tensor_maps = {
            name: product.tensor_maps(weights.device, self.maps[name]) for name, product in self.products.items()
        }
        self.values: dict[str, Any] = {}  # of layers that were given or asked for, float32 (n, h, w, channels)

    # -- what the forward pass asks for -----------------------------------------------------------------------

    def set_value(self, name: str, value: np.ndarray) -> None:
        array = self._value(name)
        array.copy_to_device(np.ascontiguousarray(value).reshape(-1), stream=self.stream)
        self._write(name, array, self.n)

    def make_constant(self, value: np.ndarray) -> Any:
        return self.device.upload(value)

    def set_constant(self, name: str) -> None:
        constant, value = self.constants[name], self._value(name)
        launch_over(kernels(self.kind).copy_values, self.stream, value.size, constant, value, value.size, constant.size)
        self._write(name, constant, 1)

    def bind_output(self, out: np.ndarray) -> None:
        self.image = self._output  # in float32, from where it is copied

    def replay(self, key: Any, launch: Callable[[threading.Event], None], stop: threading.Event) -> None:
        """Launch kernels, from a graph where graphs can be had: what is recorded is never stopped midway."""
        if not self.device.has_graphs:
            launch(NEVER)
            return
        if key not in self._graphs:
            self._graphs[key] = self.device.graph(lambda: launch(NEVER), self.stream)
        self._graphs[key]()

    def get_value(self, name: str, out: np.ndarray) -> None:
        is_output = name in self.weights.ops and self.weights.ops[name].op.makes_image
        array = self._output[: out.size] if is_output else self.values[name]
        array.copy_to_host(out.reshape(-1), stream=self.stream)
        self.stream.synchronize()

    def set_images(self, b: Any) -> None:
        """The input from 8-bit images (n * h * w * channels) in the GPU's memory."""
        self._write(INPUT, b, self.n)

    def _value(self, name: str) -> Any:
        """Memory for a layer's value, which stays. Raises MemoryError."""
        if name not in self.values:
            self.values[name] = self.device.empty(self.n * int(np.prod(self.shapes[name])))
        return self.values[name]

    def _write(self, name: str, value: Any, images: int) -> None:
        """A value (images * h * w * channels) in the GPU's memory, into the maps of its readers; one image for all."""
        h, w, channels = self.shapes[name]
        kernel = kernels(self.kind).write_map[value.dtype == np.uint8]
        shape = Values(self.n, images, channels)
        for use in self.weights.uses.get(name, ()):
            to = self.weights.maps[use.map]
            target, array = Target(to.words, use.first, use.slope), self.maps[use.map]
            frame, count = Frame(h, w, to.factor, to.border, to.fill), self.n * int(np.prod(to.size(h, w))) * use.width
            launch_over(kernel, self.stream, count, value, array, shape, frame, use.width, target)

    # -- one layer --------------------------------------------------------------------------------------------

    def run(self, op: Op, wanted: bool) -> None:
        """Launch one operation; its value is kept in float32 if it is wanted."""
        packed, name = self.weights.ops[op.name], op.name
        if op.makes_image:
            self._make_image(packed)
            return
        if packed.is_padded:
            self._fill_padded(packed, self._value(name) if wanted else None)
            return
        uses = self.weights.uses[name]
        outputs = [
            Output(self.maps[use.map], Target(self.weights.maps[use.map].words, use.first, use.slope)) for use in uses
        ]
        if not wanted:
            self._fill(packed, outputs)
            return
        self._fill(packed, [outputs[0].plain()])  # the value without activation, then all readers' maps from it
        (h, w, channels), value, (array, target) = self.shapes[name], self._value(name), outputs[0]
        pixels = self.n * h * w
        arguments = array, value, pixels, channels, target.stride, target.first
        launch_over(kernels(self.kind).read_map, self.stream, pixels * uses[0].width, *arguments)
        self._write(name, value, self.n)

    def _make_image(self, packed: PackedOp) -> None:
        """The output: partial sums, then the image."""
        product, pixels = self.products[packed.op.name], self.n * int(np.prod(self.shapes[packed.op.name][:2]))
        self._multiply(packed, slice(0, self.n), PARTIAL_SUMS, [])
        has_taps = multiplies_all_taps(packed.op) and packed.algorithm.kind != "im2col"
        as_bytes, epilogue = self.image.dtype == np.uint8, packed.op.epilogue
        log_phases, tanh = int(product.shape.phases > 1), int(epilogue.activation == "tanh")
        shape = Images(self.n, *self.shapes[packed.op.name], log_phases, tanh)
        scale = np.float32(epilogue.output_scale)
        arguments = self.scratch, packed.affine, self.image, shape, packed.columns, packed.algorithm.splits, scale
        launch_over(kernels(self.kind).to_image[has_taps, as_bytes], self.stream, pixels, *arguments)

    def _fill(self, packed: PackedOp, outputs: list[Output]) -> None:
        """Compute a layer's value into the maps of its readers."""
        product, everything = self.products[packed.op.name], slice(0, self.n)
        if product.writes_sums:
            self._multiply(packed, everything, PARTIAL_SUMS, [])
            tiling = self._finish(packed, outputs)
            if tiling:
                self._normalise(packed, everything, tiling, outputs)
        elif product.normalises:
            for images in self._chunks(product):
                some = [output.from_pixel(images.start * product.pixels) for output in outputs]
                self._multiply(packed, images, STATISTICS, [some[0].plain()])
                self._normalise(packed, images, self._tiling(product), some)
        else:
            self._multiply(packed, everything, MAPS, outputs)

    def _chunks(self, product: Product) -> Iterator[slice]:
        """The images that are computed at once."""
        for first in range(0, self.n, product.images_at_once):
            yield slice(first, min(first + product.images_at_once, self.n))

    def _fill_padded(self, packed: PackedOp, value: Any) -> None:
        """The same by way of scratch: the value alone, in float32, if it is asked for, else its readers' maps."""
        name, product, epilogue = packed.op.name, self.products[packed.op.name], packed.op.epilogue
        (h, w, channels), words = self.shapes[name], packed.columns // VECTOR * VECTOR_WORDS[self.kind]
        result = Output(self.scratch[product.result_at :], Target(words, 0, np.float32(epilogue.inner_slope)))
        for images in self._chunks(product):
            if product.writes_sums:
                self._multiply(packed, images, PARTIAL_SUMS, [])
                tiling = self._finish(packed, [result])
            elif product.normalises:
                self._multiply(packed, images, STATISTICS, [result])
                tiling = self._tiling(product)
            else:
                self._multiply(packed, images, MAPS, [result])
                tiling = None
            if value is None:
                for use in self.weights.uses[name]:
                    self._pad(packed, images, tiling, result.array, use)
            else:
                self._pad(packed, images, tiling, result.array, None)
                pixels = (images.stop - images.start) * h * w
                arguments = result.array, value[images.start * h * w * channels :], pixels, channels, words, 0
                launch_over(kernels(self.kind).read_map, self.stream, pixels * words, *arguments)
        if value is not None:
            self._write(name, value, self.n)

    def _pad(self, packed: PackedOp, images: slice, tiling: Norm | None, result: Any, use: Use | None) -> None:
        """Launch the kernel that makes a reader's map of the result of some images, or completes it in place."""
        name, nothing = packed.op.name, self.scratch
        h, w, _ = self.shapes[name]
        if use:
            to = self.weights.maps[use.map]
            target = Target(to.words, use.first, use.slope)
            size, frame = to.size(h, w), Frame(h, w, to.factor, to.border, to.fill)
            out = self.maps[use.map][images.start * size[0] * size[1] * to.words :]
        else:
            target = Target(packed.columns // VECTOR * VECTOR_WORDS[self.kind], 0, np.float32(1))
            size, frame, out = (h, w), Frame(h, w, 1, 0, ZEROS), result
        read, residual = Residual(0, 0, 0), nothing
        if packed.residual:
            at = self.weights.maps[packed.residual.map]
            read, (map_h, map_w) = Residual(at.words, packed.residual.first, at.border), at.size(h, w)
            residual = self.maps[packed.residual.map][images.start * map_h * map_w * at.words :]
        shape = tiling or Norm(h * w, 1, 1, h * w, packed.columns, np.float32(0))
        blocks = (*self._blocks(packed.columns, size[0] * size[1]), images.stop - images.start)
        kernels(self.kind).pad_map[tiling is not None][blocks, LANES * ROWS, self.stream](
            result, self.statistics, packed.affine, residual, out, shape, Padding(frame, target, read)
        )

    @staticmethod
    def _blocks(columns: int, pixels: int) -> tuple[int, int]:
        """Blocks for the channels, and for the parts, of each image's map."""
        return -(-columns // (VECTOR * LANES)), -(-pixels // (16 * ROWS))

    @staticmethod
    def _tiling(product: Product) -> Norm:
        """How the product cuts a map for its statistics."""
        shape, bm, norm = product.shape, product.tile.bm, product.packed.op.epilogue.norm
        assert norm is not None
        eps = np.float32(norm.eps)
        return Norm(product.pixels, shape.phases, -(-shape.rows // bm), bm, product.packed.columns, eps)

    def _multiply(self, packed: PackedOp, images: slice, epilogue: int, outputs: list[Output]) -> None:
        """Launch the product for some images."""
        name, product = packed.op.name, self.products[packed.op.name]
        shared = self.scratch, self.statistics
        memory = Memory(self.weights.device, self.stream, self.maps[name], self.tensor_maps[name], *shared)
        if packed.algorithm.kind == "im2col":
            product.launch_im2col(memory)
        else:
            product.launch(memory, images, epilogue, outputs)

    def _normalise(self, packed: PackedOp, images: slice, tiling: Norm, outputs: list[Output]) -> None:
        """Launch the kernel that normalises maps by their tiles' statistics."""
        blocks = (*self._blocks(tiling.columns, tiling.pixels), images.stop - images.start)
        out, out2, targets = arrays_and_targets(outputs, self.scratch)
        kernels(self.kind).normalise_map[blocks, LANES * ROWS, self.stream](
            self.statistics, packed.affine, out, out2, tiling, targets
        )

    def _finish(self, packed: PackedOp, outputs: list[Output]) -> Norm | None:
        """Launch the kernel that makes maps of partial sums. Returns how it cut them, if they are to be normalised."""
        product, epilogue = self.products[packed.op.name], packed.op.epilogue
        norm, shape, pixels = epilogue.norm if product.normalises else None, product.shape, product.pixels
        result, share = MAPS, max(PART_PIXELS, -(-pixels // MOST_PARTS))
        if norm and pixels <= ONE_BLOCK_PIXELS and not packed.is_padded:
            result, share = NORMALISED, pixels
        elif norm:
            result = STATISTICS if epilogue.inner_slope == 1 else LEAKY_STATISTICS
            outputs = [outputs[0].plain()]
        parts, eps, slope = -(-pixels // share), np.float32(norm.eps if norm else 0), np.float32(epilogue.inner_slope)
        out, out2, targets = arrays_and_targets(outputs, self.scratch)
        sums = Sums(shape.h, shape.w, shape.phases, packed.algorithm.splits, packed.columns, share, eps, slope)
        blocks = (-(-packed.columns // (VECTOR * FINISH_LANES)), parts, self.n)
        finish_kernel(self.kind, result)[blocks, LANES * ROWS, self.stream](
            self.scratch, packed.affine, out, out2, self.statistics, sums, targets
        )
        done = result in (MAPS, NORMALISED)
        return None if done else Norm(pixels, 1, parts, share, packed.columns, eps)
