"""How much memory and processor time one image may take, so that none of them can stop a run.

Memory is estimated from an image's header, before it is decoded. What a process may have is the least of what its
cgroups, its limit of address space, the machine and the user leave it.
"""

from __future__ import annotations

import ctypes
import io
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from ..cgroups import own_cgroups
from ..engines.base import Engine
from ..errors import ImageError
from ..model.generator import INPUT
from ..model.lowering import lower

NEGLIGIBLE = 32 << 20  # bytes; who needs less is not asked
UNLIMITED = 1 << 62  # bytes
VECTOR = 16  # channels: the CPU engine's maps have a multiple of that
BLOCK = 1 << 14  # bytes
PROCESS, MACHINE = Path("/proc/self/status"), Path("/proc/meminfo")
# By version: files of a cgroup's limit and use, and the cached files in its statistics, which are freed on demand.
CGROUP_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
    2: ("memory.max", "memory.current", ("inactive_file", "active_file")),
}


class Deferred(ImageError):
    """An image that is to be translated alone, when no other one takes memory."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What an image may take: ``seconds`` of processor time to decode, and the memory that is left.

    ``memory`` is what this process may have in all, in bytes, if that is less than what the system leaves it.
    ``processes`` on this machine divide what the system leaves. Raises ValueError for limits that nothing can keep.
    """

    seconds: float = 30.0
    memory: int | None = None
    processes: int = 1

    def __post_init__(self) -> None:
        if not self.seconds > 0 or (self.memory is not None and self.memory < 1):
            raise ValueError(f"got limits of {self.seconds} s and {self.memory} bytes per image, expected more than 0")

    def available(self) -> int:
        """The bytes that this process can still have."""
        shared = [*_left_in_cgroups(), _in_table(MACHINE, "MemAvailable:") or UNLIMITED]
        own = UNLIMITED if self.memory is None else self.memory - _in_table(PROCESS, "VmRSS:")
        return max(0, min(own, _left_of_address_space(), min(shared) // self.processes))


DEFAULT = Limits()


class Need(NamedTuple):
    """Bytes that an image of a file of that size takes: while it is decoded; as pixels; and, once for each of
    ``pixels``, what engines take besides, which is the engine's to say."""

    width: int
    height: int
    decoding: int
    kept: int
    results: int
    pixels: int


class Admission:
    """Decides whether an image can be decoded now, alone later, or not at all. Thread-safe.

    ``decoding`` images are decoded at a time, and ``in_flight`` wait, are translated, or are written.
    """

    def __init__(self, limits: Limits, engine: Engine, decoding: int, in_flight: int) -> None:
        self._limits, self._decoding, self._in_flight = limits, decoding, in_flight
        self._network = network_bytes(engine)
        self._lock = threading.Lock()
        self._held = 0  # bytes that the engine has for the largest image so far

    def admit(self, need: Need, alone: bool) -> None:
        """Raise Deferred or ImageError unless the image can be decoded now."""
        network = round(need.pixels * self._network)
        if need.decoding + need.kept + network + need.results <= NEGLIGIBLE:
            return
        if alone:
            _return_freed_memory()
        available = self._limits.available()
        with self._lock:
            translating = need.results + max(0, network - self._held)
            total = need.kept + max(need.decoding, translating)
            if total > available:
                raise ImageError(too_large(need.width, need.height, total, available))
            together = self._decoding * need.decoding + self._in_flight * need.kept + translating
            if together > available and not alone:
                raise Deferred("too large to be decoded beside others")
            self._held = max(self._held, network)

    def forget(self) -> None:
        """The engine has let go of its memory."""
        with self._lock:
            self._held = 0


def too_large(width: int, height: int, needed: int, available: int) -> str:
    """Why an image is refused that needs more bytes than are available."""
    scale = (available / needed) ** 0.5
    return (
        f"{width}x{height} pixels need some {needed / 1e6:,.0f} MB of memory, and {available / 1e6:,.0f} MB are left: "
        f"about {int(width * scale)}x{int(height * scale)} would fit; make it smaller or give more memory"
    )


def network_bytes(engine: Engine) -> float:
    """The most that an engine takes of this machine's memory for each pixel of a large image.

    A CPU engine keeps the float32 values of the layers that are needed at once, but not the last one's. Scratch and the
    last layer's strips are counted as another image of the input's size. A hybrid engine keeps all values, and what it
    passes on.
    """
    program, device = lower(engine.generator), engine.info.device
    side = max(engine.generator.size, engine.generator.multiple)
    sizes = {
        name: h * w * -(-channels // VECTOR) * VECTOR for name, (h, w, channels) in program.shapes(side, side).items()
    }
    image, _ = sizes.pop(INPUT), sizes.pop(program.output.name)
    if "+" in device:
        return 4 * 2 * (image + sum(sizes.values())) / side**2
    return 4 * (image + program.places(sizes).end) / side**2 if "cpu" in device else 0


class TimedReader(io.BufferedReader):
    """An open file whose reading ends with an ImageError when the thread has taken more processor time than allowed.

    Decoders read as they go, in blocks, so that they end soon after. ``largest`` bounds the blocks.
    """

    largest = UNLIMITED

    def __init__(self, raw: io.RawIOBase | BinaryIO, seconds: float) -> None:
        super().__init__(cast(io.RawIOBase, raw))
        self._seconds, self._end = seconds, time.thread_time() + seconds

    def read(self, size: int | None = -1, /) -> bytes:
        """As other files do. Raises ImageError if the time is over."""
        if time.thread_time() > self._end:
            raise ImageError(f"decoding takes more than {self._seconds:g} s of processor time")
        return super().read(size if size is None or size < 0 else min(size, self.largest))


def _return_freed_memory() -> None:
    """Give back what glibc keeps of memory that is free, often that of the image before."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _in_table(path: Path, *names: str) -> int:
    """The sum of the bytes of ``names`` in a file of lines "name: value kB" or "name value"; 0 if it has none."""
    total = 0
    with suppress(OSError):
        for line in path.read_text().splitlines():
            if line.startswith(names) and (fields := line.split())[0] in names:
                total += int(fields[1]) << (10 if fields[2:] == ["kB"] else 0)
    return total


def _left_of_address_space() -> int:
    try:
        import resource
    except ImportError:  # not on Windows
        return UNLIMITED
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return UNLIMITED if limit == resource.RLIM_INFINITY else limit - _in_table(PROCESS, "VmSize:")


def _left_in_cgroups() -> Iterator[int]:
    """What the process's cgroups leave."""
    for folder in own_cgroups("memory"):
        for limit_file, used_file, cached in CGROUP_FILES.values():
            with suppress(OSError, ValueError):
                limit, used = (int((folder / file).read_text()) for file in (limit_file, used_file))
                yield limit - used + _in_table(folder / "memory.stat", *cached)
