"""Names of devices: what ``--device`` takes, and which devices that means on this machine.

auto          every GPU if there is one that can be used, else the CPU
cpu           the processor's cores
cuda          every GPU
cuda:0,1      these GPUs; cuda:0,cuda:1 is the same
cpu,cuda:0    the CPU and a GPU together
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

DRIVERS = {"linux": "libcuda.so.1", "win32": "nvcuda.dll"}
WORKERS_PER_GPU = 4  # one copies images in, one computes, one copies results out, one is ready


@dataclass(frozen=True, slots=True)
class Device:
    """The CPU, or the GPU that CUDA numbers ``index``."""

    kind: Literal["cpu", "cuda"]
    index: int = 0

    def __str__(self) -> str:
        return "cpu" if self.kind == "cpu" else f"cuda:{self.index}"


def parse(text: str, count_gpus: Callable[[], int]) -> tuple[Device, ...]:
    """The devices that ``text`` means, each once, in the order of their naming.

    ``count_gpus`` says how many GPUs can be used, and raises RuntimeError that says what is missing if none can; it is
    asked only if ``text`` makes it necessary. Raises ValueError for a text that means nothing, and RuntimeError for a
    GPU that isn't there.
    """
    if text == "auto":
        try:
            return _gpus(count_gpus())
        except RuntimeError:
            return (Device("cpu"),)
    devices: list[Device] = []
    for item in _items(text):
        found = (Device("cpu"),) if item == "cpu" else _gpus(count_gpus())
        if isinstance(item, int):
            if item >= len(found):
                there = f"{found[0]} to {found[-1]}" if len(found) > 1 else f"{found[0]} alone"
                raise RuntimeError(f"device cuda:{item}: this machine has {there}")
            found = found[item : item + 1]
        for device in found:
            if device in devices:
                raise ValueError(f"got device {text!r}, which names {device} twice")
            devices.append(device)
    return tuple(devices)


def share_workers(devices: Sequence[Device], workers: int | None) -> dict[Device, int]:
    """How many of ``workers`` each device has.

    One device has all of them, 1 by default. Of several, each GPU has its share, 4 by default, and the CPU has one
    worker, whose threads have the cores. Raises ValueError for fewer workers than devices.
    """
    if workers is not None and workers < len(devices):
        raise ValueError(f"got {workers} workers for {', '.join(map(str, devices))}: give each device one at least")
    if len(devices) == 1:
        return {devices[0]: workers or 1}
    gpus = sum(device.kind == "cuda" for device in devices)
    shared = WORKERS_PER_GPU * gpus if workers is None else workers - (len(devices) - gpus)
    counts: dict[Device, int] = {}
    for device in devices:
        counts[device] = 1 if device.kind == "cpu" else -(-shared // gpus)
        if device.kind == "cuda":
            shared, gpus = shared - counts[device], gpus - 1
    return counts


def _items(text: str) -> list[str | int]:
    """The items of a list: cpu, cuda, or the number of a GPU, named cuda:N or N after another numbered one."""
    items: list[str | int] = []
    for item in text.split(","):
        number, previous = item.removeprefix("cuda:"), items[-1] if items else None
        if item in ("cpu", "cuda"):
            items.append(item)
        elif number.isascii() and number.isdecimal() and (number != item or isinstance(previous, int)):
            items.append(int(number))
        else:
            raise ValueError(f"got device {text!r}, expected auto, cpu, cuda, cuda:0, cuda:0,1 or cpu,cuda:0")
    return items


def _gpus(count: int) -> tuple[Device, ...]:
    return tuple(Device("cuda", index) for index in range(count))


def count_gpus() -> int:
    """How many GPUs can be used. Raises RuntimeError that says what is missing if none can."""
    if not _has_driver():
        raise RuntimeError(
            "device cuda: no GPU can be used (the library of NVIDIA's driver is not there): install the driver, and "
            "pip install 'pix2pix[cuda]', or use device 'cpu'"
        )
    try:
        from numba import config, cuda
    except ImportError as error:
        raise RuntimeError(
            f"device cuda: a package is missing ({error}): pip install 'pix2pix[cuda]', or use device 'cpu'"
        ) from None
    if config.ENABLE_CUDASIM:
        return 1
    from numba.cuda.cudadrv.driver import driver
    from numba.cuda.cudadrv.nvvm import NVVM

    if not cuda.is_available():
        reason = one_line(getattr(driver, "initialization_error", None) or "there is no device")
        raise RuntimeError(f"device cuda: no GPU can be used ({reason}): install NVIDIA's driver, or use device 'cpu'")
    try:
        NVVM()
    except Exception as error:
        raise RuntimeError(
            f"device cuda: no GPU can be used: the CUDA toolkit's compiler NVVM is missing ({one_line(error)}); "
            "pip install 'pix2pix[cuda]' brings it"
        ) from None
    return len(cuda.gpus)


def _has_driver() -> bool:
    """Whether it is worth half a second to import numba and have it look for GPUs: there is a driver or a simulator."""
    if "NUMBA_CUDA_DRIVER" in os.environ or os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0"):
        return True
    try:
        ctypes.CDLL(DRIVERS[sys.platform])
    except (KeyError, OSError):
        return False
    return True


def gpu_name(index: int) -> str:
    """What CUDA calls the GPU of that index. Raises RuntimeError if there is none."""
    there = count_gpus()
    if not 0 <= index < there:
        raise RuntimeError(f"device cuda:{index}: this machine has {there} that can be used, numbered from 0")
    from numba import config, cuda

    if config.ENABLE_CUDASIM:
        return "numba's simulator"
    found = cuda.gpus[index].name
    return found.decode() if isinstance(found, bytes) else found


def one_line(reason: object) -> str:
    """A reason given by a library, as a part of a sentence."""
    return " ".join(str(reason).split()).rstrip(".:")
