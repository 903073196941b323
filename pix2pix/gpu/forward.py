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

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from ..engines.execution import NEVER, Backend, Context
from ..model.generator import INPUT
from ..model.lowering import Op
from ..plans.algorithms import multiplies_all_taps, multiplies_columns
from .device import Device
from .jit import launch_over
from .kernels.epilogue import MAPS, PARTIAL_SUMS, STATISTICS
from .kernels.parameters import Images, Target
from .map_writer import MapWriter, kernels
from .memory import SHARED, buffer_sizes, cut, products_of
from .packing import DeviceWeights, PackedOp
from .products import Memory, Output

MOST_IMAGES = 65535  # of a grid


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
        self.writer = MapWriter(weights, self.n, self.shapes, self.maps, self.stream, self.scratch, self.statistics)
        self.values: dict[str, Any] = {}  # of layers that were given or asked for, float32 (n, h, w, channels)

    # -- what the forward pass asks for -----------------------------------------------------------------------

    def set_value(self, name: str, value: np.ndarray) -> None:
        array = self._value(name)
        array.copy_to_device(np.ascontiguousarray(value).reshape(-1), stream=self.stream)
        self.stream.synchronize()  # the copy may still read the host's memory, which the caller may free or fill
        self.writer.write(name, array, self.n)

    def make_constant(self, value: np.ndarray) -> Any:
        return self.device.upload(value)

    def set_constant(self, name: str) -> None:
        constant, value = self.constants[name], self._value(name)
        launch_over(kernels(self.kind).copy_values, self.stream, value.size, constant, value, value.size, constant.size)
        self.writer.write(name, constant, 1)

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
        self.writer.write(INPUT, b, self.n)

    def _value(self, name: str) -> Any:
        """Memory for a layer's value, which stays. Raises MemoryError."""
        if name not in self.values:
            self.values[name] = self.device.empty(self.n * int(np.prod(self.shapes[name])))
        return self.values[name]

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
        value = self._value(name)
        self._read(name, outputs[0], value)
        self.writer.write(name, value, self.n)

    def _read(self, name: str, place: Output, value: Any) -> None:
        """A layer's value in float32 from where a map holds it without activation."""
        channels = self.shapes[name][2]
        arguments = place.array, value, value.size // channels, channels, place.target.stride, place.target.first
        launch_over(kernels(self.kind).read_map, self.stream, value.size, *arguments)

    def _make_image(self, packed: PackedOp) -> None:
        """The output: partial sums, then the image."""
        product, pixels = self.products[packed.op.name], self.n * int(np.prod(self.shapes[packed.op.name][:2]))
        self._multiply(packed, slice(0, self.n), PARTIAL_SUMS, [])
        as_bytes, epilogue = self.image.dtype == np.uint8, packed.op.epilogue
        log_phases, tanh = int(product.shape.phases > 1), int(epilogue.activation == "tanh")
        is_implicit = packed.algorithm.kind != "im2col"
        has_taps = is_implicit and multiplies_all_taps(packed.op)
        taps = packed.op.sampling.kernel if is_implicit and multiplies_columns(packed.op) else 1
        shape = Images(self.n, *self.shapes[packed.op.name], log_phases, taps, tanh)
        scale = np.float32(epilogue.output_scale)
        arguments = self.scratch, packed.affine, self.image, shape, packed.columns, packed.algorithm.splits, scale
        launch_over(kernels(self.kind).to_image[has_taps, as_bytes], self.stream, pixels, *arguments)

    def _fill(self, packed: PackedOp, outputs: list[Output]) -> None:
        """Compute a layer's value into the maps of its readers."""
        product, everything = self.products[packed.op.name], slice(0, self.n)
        if product.writes_sums:
            self._multiply(packed, everything, PARTIAL_SUMS, [])
            tiling = self.writer.finish(product, outputs)
            if tiling:
                self.writer.normalise(packed, self.n, tiling, outputs)
        elif product.normalises:
            for images in product.chunks():
                some = [output.from_pixel(images.start * product.pixels) for output in outputs]
                self._multiply(packed, images, STATISTICS, [some[0].plain()])
                self.writer.group_statistics(packed, images.stop - images.start, product.tiling())
                self.writer.normalise(packed, images.stop - images.start, product.tiling(), some)
        else:
            self._multiply(packed, everything, MAPS, outputs)

    def _fill_padded(self, packed: PackedOp, value: Any) -> None:
        """The same by way of scratch: the value alone, in float32, if it is asked for, else its readers' maps."""
        product, epilogue = self.products[packed.op.name], packed.op.epilogue
        inner = Target(product.result_words, 0, np.float32(epilogue.inner_slope))
        result = Output(self.scratch[product.result_at :], inner)
        for images in product.chunks():
            tiling = None
            if product.writes_sums:
                self._multiply(packed, images, PARTIAL_SUMS, [])
                tiling = self.writer.finish(product, [result])
            elif product.normalises:
                self._multiply(packed, images, STATISTICS, [result])
                tiling = product.tiling()
                self.writer.group_statistics(packed, images.stop - images.start, tiling)
            else:
                self._multiply(packed, images, MAPS, [result])
            if value is None:
                self.writer.pad(product, images, tiling, result.array)
            else:
                self.writer.complete(product, images, tiling, result.array)
                part = slice(*(at * value.size // self.n for at in (images.start, images.stop)))
                self._read(packed.op.name, result.plain(), value[part])
        if value is not None:
            self.writer.write(packed.op.name, value, self.n)

    def _multiply(self, packed: PackedOp, images: slice, epilogue: int, outputs: list[Output]) -> None:
        """Launch the product for some images."""
        name, product = packed.op.name, self.products[packed.op.name]
        shared = self.scratch, self.statistics
        memory = Memory(self.weights.device, self.stream, self.maps[name], self.tensor_maps[name], *shared)
        if packed.algorithm.kind == "im2col":
            product.launch_im2col(memory)
        else:
            product.launch(memory, images, epilogue, outputs)
        if packed.averaged is not None:
            product.launch_average(memory)
