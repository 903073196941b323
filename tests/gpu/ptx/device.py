"""In the place of the GPU: memory, streams, launches and the driver's tensor maps, so that the engine runs unchanged.

:func:`on_machine` puts the machine under the engine for some time. Streams overlap nothing, and there are no graphs.

Source of what the driver requires of tensor maps: the CUDA driver API, cuTensorMapEncodeTiled.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
from numba import cuda
from numba.cuda import types
from numba.cuda.dispatcher import CUDADispatcher
from numba.cuda.np import numpy_support

from pix2pix.gpu import device as gpu_device
from pix2pix.gpu import engine, tensor_maps

from .compiler import ARCHITECTURES, name_of, program_of, ptx_of
from .faults import Fault
from .global_memory import Allocation
from .launch import ArrayArgument, Configuration, launch
from .machine import Options
from .tma import TensorMap, encoded

NAME = "PTX machine"
WITHOUT_ASKING = 48 << 10  # bytes of shared memory
ALLOCATIONS: list[Allocation] = []  # the latest, where tensor maps are looked for
SWIZZLE_128B, UINT32 = 3, 2  # the driver's numbers


@dataclass
class Session:
    """What runs on the machine, and how: an architecture, options, and a record of launches.

    ``change`` breaks kernels on purpose; ``only`` chooses blocks of every grid.
    """

    architecture: str
    options: Options = Options()
    change: Callable[[str, str], str] | None = None
    only: Callable[[tuple[int, int, int]], Sequence[int]] | None = None
    launches: Counter[str] = field(default_factory=Counter)  # by the kernel's name
    executed: dict[str, set[str]] = field(default_factory=dict)  # opcodes of each kernel
    allowed: dict[Any, int] = field(default_factory=dict)  # bytes of shared memory that kernels may have

    def launch(self, kernel: Any, configuration: Configuration, arguments: tuple[Any, ...]) -> None:
        """Run a kernel of Numba's."""
        name, dynamic = name_of(kernel), configuration.dynamic
        signature = tuple(_type_of(kernel, argument) for argument in arguments)
        text = ptx_of(kernel, signature, self.architecture)
        program = program_of(self.change(name, text) if self.change else text)
        program.forget_visits()
        if dynamic > WITHOUT_ASKING and self.allowed.get(kernel, 0) < dynamic:
            raise Fault(f"{name}: {dynamic} bytes of shared memory, {self.allowed.get(kernel, 0)} were asked for")
        passed = [argument.passed() if isinstance(argument, DeviceArray) else argument for argument in arguments]
        try:
            launch(program, configuration, passed, self.options, self.only)
        except Fault as fault:
            raise Fault(f"{name}, grid {configuration.grid} x {configuration.threads}: {fault}") from fault
        self.launches[name] += 1
        self.executed.setdefault(name, set()).update(program.executed())


class DeviceArray:
    """Elements of an allocation from a byte on, one-dimensional."""

    def __init__(self, allocation: Allocation, offset: int, size: int, dtype: Any) -> None:
        self.allocation, self.offset, self.size, self.dtype = allocation, offset, size, np.dtype(dtype)
        self.shape, self.nbytes = (size,), size * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        data = self.allocation.address + self.offset, False
        return {"data": data, "shape": self.shape, "typestr": self.dtype.str, "version": 3}

    def __getitem__(self, part: slice) -> DeviceArray:
        begin, end, step = part.indices(self.size)
        if step != 1:
            raise ValueError(f"got a step of {step}, expected 1")
        return DeviceArray(self.allocation, self.offset + begin * self.dtype.itemsize, max(0, end - begin), self.dtype)

    def host(self) -> np.ndarray:
        """The elements, not a copy."""
        return self.allocation.bytes[self.offset : self.offset + self.nbytes].view(self.dtype)

    def passed(self) -> ArrayArgument:
        """As an argument of a launch."""
        return ArrayArgument(self.allocation, self.offset, self.size, self.dtype.itemsize)

    def copy_to_device(self, array: np.ndarray, stream: Any = None) -> None:
        """Fill it from host memory of its type and shape."""
        self._check(array)
        self.host()[...] = array

    def copy_to_host(self, array: np.ndarray | None = None, stream: Any = None) -> np.ndarray:
        """Copy it to host memory of its type and shape, or to a new array."""
        if array is None:
            return self.host().copy()
        self._check(array)
        array[...] = self.host()
        return array

    def _check(self, array: np.ndarray) -> None:
        if array.dtype != self.dtype or array.shape != self.shape or not array.flags.c_contiguous:
            raise ValueError(f"got {array.dtype} {array.shape}, expected contiguous {self.dtype} {self.shape}")


class MachineDevice:
    """In the place of :class:`pix2pix.gpu.device.Device`."""

    has_graphs = False
    _next_address = 0x7F00_0000_0000

    def __init__(self, index: int, session: Session) -> None:
        self.index, self.name, self.session = index, NAME, session
        self.capability = ARCHITECTURES[session.architecture][:2]

    def empty(self, size: int, dtype: Any = np.float32) -> DeviceArray:
        """`size` uninitialised elements: all bits are ones, which is NaN."""
        allocation = Allocation(int(size) * np.dtype(dtype).itemsize, MachineDevice._next_address)
        MachineDevice._next_address += -(-allocation.size // 512) * 512 + 512
        ALLOCATIONS.append(allocation)
        del ALLOCATIONS[:-256]
        return DeviceArray(allocation, 0, int(size), dtype)

    def upload(self, array: np.ndarray) -> DeviceArray:
        """A flat copy of a host array."""
        result = self.empty(array.size, array.dtype)
        result.copy_to_device(np.ascontiguousarray(array).reshape(-1))
        return result

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Host memory."""
        return np.zeros(shape, dtype)

    def lent(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Host memory."""
        return self.pinned(shape, dtype)

    def allow_shared(self, kernel: Any, arguments: tuple[Any, ...], size: int) -> None:
        """Let a kernel have more dynamic shared memory."""
        self.session.allowed[kernel] = max(self.session.allowed.get(kernel, 0), size)

    def stream(self) -> Any:
        """A stream, on which everything is done at once."""
        return SimpleNamespace(synchronize=lambda: None)

    def event(self) -> Any:
        """An event, which has happened."""
        return SimpleNamespace(record=lambda stream: None, wait=lambda stream: None, synchronize=lambda: None)

    def graph(self, work: Callable[[], None], stream: Any) -> Callable[[], None]:
        """Plain launches."""
        return work

    def deferring(self) -> AbstractContextManager[None]:
        """Nothing is deferred."""
        return nullcontext()

    def release(self) -> None:
        """Memory is freed with its arrays."""

    def close(self) -> None:
        """Nothing is left to be freed."""


@contextmanager
def on_machine(session: Session) -> Iterator[MachineDevice]:
    """Put the machine under the engine: kernels of Numba's, wherever they were made, run on it."""
    device = MachineDevice(0, session)

    def configured(kernel: Any, brackets: tuple[Any, ...]) -> Callable[..., None]:
        blocks, threads, _, dynamic = (*brackets, *(None, 0)[len(brackets) - 2 :])
        sizes = blocks if isinstance(blocks, tuple) else (blocks,)
        grid = (*(int(size) for size in sizes), 1, 1)[:3]
        configuration = Configuration(grid, int(threads), int(dynamic))
        return lambda *arguments: session.launch(kernel, configuration, arguments)

    def uploaded(array: np.ndarray) -> DeviceArray:
        return device.upload(np.asarray(array))

    library = SimpleNamespace(cuTensorMapEncodeTiled=_encode)
    c_types = {name: getattr(ctypes, name) for name in ("c_void_p", "c_uint32", "c_uint64")}
    driver = SimpleNamespace(CDLL=lambda name: library, **c_types)
    capability = ARCHITECTURES[session.architecture][:2]
    with ExitStack() as stack:
        for target, name, replacement in (
            (CUDADispatcher, "__getitem__", configured),
            (engine, "Device", lambda index: MachineDevice(index, session)),
            (engine, "gpu_name", lambda index: NAME),
            (gpu_device, "capability_of", lambda index: capability),
            (tensor_maps, "ctypes", driver),
            (cuda, "to_device", uploaded),
        ):
            stack.enter_context(mock.patch.object(target, name, replacement))
        yield device


def _type_of(kernel: Any, argument: Any) -> Any:
    if isinstance(argument, DeviceArray):
        return types.Array(numpy_support.from_dtype(argument.dtype), 1, "C")
    return kernel.typeof_pyval(argument)


def _encode(to, kind, rank, address, sizes, strides, box, steps, interleave, swizzle, promotion, fill) -> int:
    """cuTensorMapEncodeTiled. Raises Fault for what the driver refuses."""
    rank, (sizes, strides, box, steps) = rank.value, (tuple(values) for values in (sizes, strides, box, steps))
    if (kind, interleave, fill) != (UINT32, 0, 0) or swizzle not in (0, SWIZZLE_128B) or promotion not in range(4):
        raise Fault(f"tensor map: kind {kind}, interleave {interleave}, swizzle {swizzle}, fill {fill}: not known")
    wrong = []
    if to.value % 64 or address.value % 16:
        wrong.append("alignment of addresses")
    if not 1 <= rank <= 5 or (len(sizes), len(strides), len(box), len(steps)) != (rank, rank - 1, rank, rank):
        wrong.append("numbers of dimensions")
    if any(not 0 < size <= 1 << 32 for size in sizes) or any(not 0 < b <= 256 for b in box) or steps != (1,) * rank:
        wrong.append(f"sizes {sizes}, box {box}, steps {steps}")
    if any(stride % 16 or not 0 < stride < 1 << 40 for stride in strides):
        wrong.append(f"strides {strides}")
    if box[0] * 4 % 16 or swizzle and box[0] * 4 > 128:
        wrong.append(f"{box[0]} words in a box's row")
    if wrong:
        raise Fault(f"tensor map: {', '.join(wrong)}")
    allocation = next(a for a in reversed(ALLOCATIONS) if a.address <= address.value < a.address + a.size)
    words = allocation.bytes[address.value - allocation.address :].view(np.uint32)
    last = sum((size - 1) * stride for size, stride in zip(sizes, (4, *strides), strict=True)) // 4
    if last >= len(words):
        raise Fault(f"tensor map: {last + 1} words of {len(words)}")
    tensor_map = TensorMap(words, sizes, strides, box, swizzle == SWIZZLE_128B)
    ctypes.memmove(to.value, encoded(tensor_map).tobytes(), 128)
    return 0
