"""In the place of the driver: under Numba's host code and cuda-core's streams, for some time."""

from __future__ import annotations

import functools
import gc
import hashlib
import inspect
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
from cuda.bindings import driver as binding
from numba import config, cuda
from numba.cuda.cudadrv import devices as numba_devices
from numba.cuda.cudadrv import driver as numba_driver
from numba.cuda.dispatcher import CUDADispatcher

from pix2pix import devices as pix2pix_devices
from pix2pix.gpu import device as gpu_device
from pix2pix.gpu import products
from pix2pix.gpu.tensor_maps import ENCODED_BYTES, TensorMap

from .driver import FakeDriver
from .faults import DriverError, Fault
from .graphs import CoreStream, as_core
from .memory import Span
from .timeline import Work

CAPABILITY = (9, 0)
SAMPLED = 1 << 16  # bytes of a span that a digest is of
# What kernels write, by the names of their parameters: `out` and `out2`, and besides:
ALSO_WRITTEN = {
    "simt_gemm": ("statistics",),
    "mma_gemm": ("statistics",),
    "hopper_gemm": ("statistics",),
    "finish_map": ("statistics", "partial"),
    "group_statistics": ("statistics",),
}
# Of what they write.
READ_TOO = {"finish_map": ("partial",), "normalise_map": ("out",), "group_statistics": ("statistics",)}
# Calls that Numba makes, with the types that it expects of results.
RESULTS: dict[str, Callable[[Any], Any]] = {
    "cuCtxGetCurrent": lambda device: binding.CUcontext(0 if device is None else device + 1),
    "cuCtxPopCurrent": lambda device: binding.CUcontext(device + 1),
    "cuCtxGetDevice": binding.CUdevice,
    "cuStreamCreate": binding.CUstream,
    "cuEventCreate": binding.CUevent,
    "cuMemAlloc": binding.CUdeviceptr,
    "cuMemHostAlloc": int,
    "cuMemGetInfo": lambda pair: pair,
}
CALLS = (
    *RESULTS,
    "cuDeviceGetCount",
    "cuCtxPushCurrent",
    "cuCtxSynchronize",
    "cuMemFree",
    "cuMemFreeHost",
    "cuMemcpyHtoD",
    "cuMemcpyDtoH",
    "cuMemcpyHtoDAsync",
    "cuMemcpyDtoHAsync",
    "cuStreamDestroy",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
    "cuEventDestroy",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuKernelSetAttribute",
)


class CoreDevice:
    """In the place of cuda.core.Device, of which Numba asks a device's properties and its primary context."""

    def __init__(self, driver: FakeDriver, index: int) -> None:
        self._driver, self.device_id = driver, index
        self.compute_capability, self.name, self.uuid = CAPABILITY, f"fake GPU {index}", f"fake-{index}"
        self.context = SimpleNamespace(handle=binding.CUcontext(index + 1))

    def set_current(self) -> None:
        """cuDevicePrimaryCtxRetain, then cuCtxPushCurrent unless it is current."""
        self._driver.call("cuDevicePrimaryCtxRetain", self.device_id)
        if self._driver.current != self.device_id:
            self._driver.call("cuCtxPushCurrent", self.device_id)


def effect_of(name: str, arguments: list[Any], reads: tuple[Span, ...], writes: tuple[Span, ...]) -> Callable[[], None]:
    """What a kernel does here: it fills all that it writes with a digest of all that it reads."""
    text = repr((name, arguments))

    def effect() -> None:
        digest = hashlib.blake2b(text.encode(), digest_size=32)
        for span in reads:
            digest.update(span.bytes[:: 1 + (span.end - span.begin) // SAMPLED].tobytes())
        filled = np.frombuffer(digest.digest(), np.uint8)
        for span in writes:
            whole = len(span.bytes) // len(filled) * len(filled)
            span.bytes[:whole].reshape(-1, len(filled))[...] = filled
            span.bytes[whole:] = filled[: len(span.bytes) - whole]

    return effect


def work_of(driver: FakeDriver, kernel: Any, arguments: tuple[Any, ...]) -> Work:
    """A launch of a kernel with these arguments."""
    function = kernel.py_func
    written = {"out", "out2", *ALSO_WRITTEN.get(function.__name__, ())}
    reads, writes, others = [], [], []
    for name, argument in zip(inspect.signature(function).parameters, arguments, strict=True):
        interface = getattr(argument, "__cuda_array_interface__", None)
        if interface is None:
            others.append(argument)
        elif argument.size:
            address = interface["data"][0]
            reads += driver.operands.get(address, ())
            span = driver.memory.span(address, argument.size * argument.dtype.itemsize, function.__name__)
            if name in written:
                writes.append(span)
            if name not in written or name in READ_TOO.get(function.__name__, ()):
                reads.append(span)
    effect = effect_of(function.__name__, others, tuple(reads), tuple(writes))
    return Work(function.__name__, tuple(reads), tuple(writes), effect)


@contextmanager
def on_driver(driver: FakeDriver, pending: int = 0) -> Iterator[FakeDriver]:
    """Put a fake driver under Numba and cuda-core. Raises the first Fault, and one if memory is left at the end.

    Numba frees when more than some frees are `pending`: here at once, which is the most dangerous; by default, 10.
    """
    with ExitStack() as stack:
        stack.enter_context(mock.patch.dict(numba_driver.driver.devices, clear=True))
        stack.callback(_list_devices_anew)
        stack.enter_context(mock.patch.object(config, "CUDA_DEALLOCS_COUNT", pending))
        calls = {name: _as_numba(driver, name) for name in CALLS}
        there = {"is_initialized": True, "initialization_error": None, **calls}
        stack.enter_context(mock.patch.dict(vars(numba_driver.driver), there))
        stack.enter_context(mock.patch.dict(vars(numba_driver), {"_logger": numba_driver.make_logger()}))
        for target, name, replacement in _replacements(driver):
            stack.enter_context(mock.patch.object(target, name, replacement))
        _list_devices_anew()
        errors = stack.enter_context(_errors_of_finalizers())
        yield driver
        gc.collect()
        for gpu in driver.gpus:
            _clear_deallocations(driver, gpu.index)
    for fault in driver.faults:  # their frames hold arrays, which Numba would free when there is no driver
        fault.add_note("".join(traceback.format_tb(fault.__traceback__)))
        fault.__traceback__ = fault.__context__ = fault.__cause__ = None
    if driver.faults:
        raise driver.faults[0]
    if errors:
        raise errors[0]
    if left := [a for a in driver.memory.alive() if not driver.gpus[a.device].error]:
        raise driver.fault(f"never freed: {len(left)} allocations, the first of {left[0]}")


def _replacements(driver: FakeDriver) -> Iterator[tuple[Any, str, Any]]:
    yield numba_driver, "ExperimentalDevice", lambda index: CoreDevice(driver, index)
    # Copies get addresses from Numba; the fake needs the arrays, to see whether they live until the copy is done.
    yield numba_driver, "host_pointer", lambda array, readonly=False: array
    yield CUDADispatcher, "__getitem__", lambda kernel, brackets: _configured(driver, kernel, *brackets)
    yield CUDADispatcher, "compile", _compile
    yield pix2pix_devices, "_has_driver", lambda: True
    yield products, "encode", functools.partial(_encode, driver)
    manager = numba_devices._DeviceContextManager
    yield manager, "__enter__", _choosing(driver, manager.__enter__)
    yield cuda, "select_device", _choosing(driver, cuda.select_device)
    has_builder = {"create_graph_builder": CoreStream.create_graph_builder}
    yield (
        gpu_device,
        "CoreStream",
        SimpleNamespace(from_handle=lambda handle: CoreStream(driver, handle), **has_builder),
    )


def _as_numba(driver: FakeDriver, name: str) -> Callable[..., Any]:
    """A call as Numba makes it: with its types, and its exception for an error."""

    def call(*arguments: Any) -> Any:
        if name == "cuCtxPushCurrent":
            arguments = (int(arguments[0]) - 1,)
        plain = [argument if isinstance(argument, np.ndarray) else _integer(argument) for argument in arguments]
        try:
            result = driver.call(name, *plain)
        except DriverError as error:
            code = binding.CUresult(error.code)
            raise numba_driver.CudaAPIError(code, f"Call to {name} results in {code.name}") from None
        return RESULTS[name](result) if name in RESULTS else result

    return call


def _integer(argument: Any) -> Any:
    return int(argument) if hasattr(argument, "__int__") else argument


def _configured(
    driver: FakeDriver, kernel: Any, grid: Any, threads: int, stream: Any = 0, shared: int = 0
) -> Callable[..., None]:
    def launch(*arguments: Any) -> None:
        work = work_of(driver, kernel, arguments)
        as_core(driver, "cuLaunchKernel", kernel, work, int(stream.handle) if stream else 0, shared)

    return launch


def _encode(driver: FakeDriver, device: gpu_device.Device, tensor_map: TensorMap) -> Any:
    """In the place of tensor_maps.encode: kernels that get the tensor map read the tensor."""
    array, encoded = tensor_map.array, device.upload(np.zeros(ENCODED_BYTES // 8, np.uint64))
    span = driver.memory.span(array.__cuda_array_interface__["data"][0], array.size * array.dtype.itemsize, "encode")
    driver.operands[encoded.__cuda_array_interface__["data"][0]] = (span,)
    return encoded


def _compile(kernel: Any, signature: Any) -> Any:
    """A compiled kernel, as far as Device.allow_shared looks at it: the function's handle is the kernel."""
    device = SimpleNamespace(id=cuda.current_context().device.id)
    function = SimpleNamespace(handle=kernel, device=device)
    return SimpleNamespace(_codelibrary=SimpleNamespace(get_cufunc=lambda: function))


def _choosing(driver: FakeDriver, select: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """What chooses a device, as opposed to Numba's choice of device 0 for threads that have not."""

    def chosen(which: Any) -> Any:
        with driver.choosing():
            return select(which)

    return chosen


@contextmanager
def _errors_of_finalizers() -> Iterator[list[BaseException]]:
    """What finalizers raise, which Python otherwise only prints."""
    errors: list[BaseException] = []
    with (
        mock.patch("sys.unraisablehook", lambda unraisable: errors.append(unraisable.exc_value)),
        mock.patch("sys.excepthook", lambda kind, value, trace: errors.append(value)),
    ):
        yield errors


def _list_devices_anew() -> None:
    """Numba keeps a list of devices."""
    type(numba_devices.gpus).lst.fget.cache_clear()


def _clear_deallocations(driver: FakeDriver, index: int) -> None:
    """In a thread of its own, which has the device: free what Numba has deferred."""

    def clear() -> None:
        cuda.select_device(index)
        with suppress(Fault):  # which is remembered
            cuda.current_context().memory_manager.deallocations.clear()

    if not driver.gpus[index].error:
        thread = threading.Thread(target=clear)
        thread.start()
        thread.join()
