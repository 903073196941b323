"""Operations on one GPU, for a number of images of one size: memory and launches.

A layer's value is written, activated, into the map of each layer that reads it, in packed words of the precision
(:mod:`pix2pix.gpu.ptx.packed_words`). The value itself is kept in float32 only where it is asked for, or was given.

Norms need the statistics of a whole image. Where an image's rows fill tiles of the product, the product writes each
tile's statistics, and a second kernel normalises the map in place: for a few images at a time, so that their maps are
still in the GPU's cache. Smaller maps, and sums that blocks share, are finished from partial sums: a small map by one
block that sees it whole, a larger one in parts that write statistics too.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from ..engines.execution import NEVER, Backend, Context
from ..model.generator import INPUT
from ..model.lowering import Op
from .device import Device
from .jit import SIMULATED, THREADS, launch_over
from .kernels.epilogue import MAPS, NORMALISED, PARTIAL_SUMS, STATISTICS
from .kernels.maps import make_copy_values, make_read_map, make_to_image, make_write_map
from .kernels.normalise import make_finish_map, make_normalise_map
from .kernels.parameters import Images, Norm, Sums, Target, Values
from .memory import PART_PIXELS, SHARED, buffer_sizes, cut, products_of
from .packing import DeviceWeights, PackedOp
from .products import Memory, Output, arrays_and_targets
from .ptx.fragments import VECTOR

LANES, ROWS, FINISH_LANES = (2, 2, 1) if SIMULATED else (8, 32, 4)
ONE_BLOCK_PIXELS = 64 if SIMULATED else 1024  # pixels of a map that one block normalises
MOST_IMAGES = MOST_PARTS = 65535  # of a grid
CACHED_WORDS = 1 << 12 if SIMULATED else 1 << 23  # words of a map that stay in the GPU's cache


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
        shape = Values(self.n, images, h, w, channels)
        for use in self.weights.uses.get(name, ()):
            to = self.weights.maps[use.map]
            target, array = Target(to.words, use.first, use.slope), self.maps[use.map]
            count = self.n * (h + 2 * to.border) * (w + 2 * to.border) * use.width
            launch_over(kernel, self.stream, count, value, array, shape, to.border, use.width, target)

    # -- one layer --------------------------------------------------------------------------------------------

    def run(self, op: Op, wanted: bool) -> None:
        """Launch one operation; its value is kept in float32 if it is wanted."""
        packed, name = self.weights.ops[op.name], op.name
        if op.makes_image:
            self._make_image(packed)
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
        product, pixels = self.products[packed.op.name], self.n * self.h * self.w
        self._multiply(packed, slice(0, self.n), PARTIAL_SUMS, [])
        has_taps, as_bytes = product.shape.rows < self.h * self.w, self.image.dtype == np.uint8
        shape, scale = Images(self.n, self.h, self.w, packed.op.filters), np.float32(packed.op.epilogue.output_scale)
        arguments = self.scratch, packed.affine, self.image, shape, packed.columns, packed.algorithm.splits, scale
        launch_over(kernels(self.kind).to_image[has_taps, as_bytes], self.stream, pixels, *arguments)

    def _fill(self, packed: PackedOp, outputs: list[Output]) -> None:
        """Compute a layer's value into the maps of its readers."""
        norm, product, everything = packed.op.epilogue.norm, self.products[packed.op.name], slice(0, self.n)
        if product.writes_sums:
            self._multiply(packed, everything, PARTIAL_SUMS, [])
            self._finish(packed, outputs)
        elif norm:
            shape, bm = product.shape, product.tile.bm
            pixels = shape.rows * shape.phases
            tiling = Norm(pixels, shape.phases, -(-shape.rows // bm), bm, packed.columns, np.float32(norm.eps))
            step = max(1, CACHED_WORDS // (pixels * packed.columns))
            for first in range(0, self.n, step):
                images = slice(first, min(first + step, self.n))
                some = [output.from_pixel(first * pixels) for output in outputs]
                self._multiply(packed, images, STATISTICS, [some[0].plain()])
                self._normalise(packed, images, tiling, some)
        else:
            self._multiply(packed, everything, MAPS, outputs)

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
        blocks = (-(-tiling.columns // (VECTOR * LANES)), -(-tiling.pixels // (16 * ROWS)), images.stop - images.start)
        out, out2, targets = arrays_and_targets(outputs, self.scratch)
        kernels(self.kind).normalise_map[blocks, LANES * ROWS, self.stream](
            self.statistics, packed.affine, out, out2, tiling, targets
        )

    def _finish(self, packed: PackedOp, outputs: list[Output]) -> None:
        """Launch the kernel that makes maps of partial sums."""
        norm, shape = packed.op.epilogue.norm, self.products[packed.op.name].shape
        pixels = shape.phases * shape.rows
        epilogue, share = MAPS, max(PART_PIXELS, -(-pixels // MOST_PARTS))
        if norm and pixels <= ONE_BLOCK_PIXELS:
            epilogue, share = NORMALISED, pixels
        elif norm:
            epilogue = STATISTICS
        parts, eps = -(-pixels // share), np.float32(norm.eps if norm else 0)
        to = [outputs[0].plain()] if epilogue == STATISTICS else outputs
        out, out2, targets = arrays_and_targets(to, self.scratch)
        sums = Sums(shape.h, shape.w, shape.phases, packed.algorithm.splits, packed.columns, share, eps)
        blocks = (-(-packed.columns // (VECTOR * FINISH_LANES)), parts, self.n)
        finish_kernel(self.kind, epilogue)[blocks, LANES * ROWS, self.stream](
            self.scratch, packed.affine, out, out2, self.statistics, sums, targets
        )
        if epilogue == STATISTICS:
            self._normalise(packed, slice(0, self.n), Norm(pixels, 1, parts, share, packed.columns, eps), outputs)
