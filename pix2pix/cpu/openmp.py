"""OpenMP's runtime library: the environment in which it is loaded, and what it says there and of the process.

The runtime reads its settings once, when it is loaded. Two of them would spoil the engine's work. A binding
(OMP_PROC_BIND, OMP_PLACES) ties the thread that loads the runtime to one core, and with it every thread that it starts
from then on. And threads that wait for each other spin: some 300,000 rounds in GNU's runtime, during which another
process may need the core. Sources: the OpenMP specification, and libgomp's manual ("Environment Variables").
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BINDING = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
SPIN_COUNT = "1000"  # what libgomp itself uses when there are more threads than processors
_lock = threading.Lock()


@contextmanager
def loading_environment() -> Iterator[None]:
    """The environment for loading the runtime: without a binding, and with a short wait unless the user chose one."""
    with _lock:
        removed = {name: os.environ.pop(name) for name in BINDING if name in os.environ}
        chosen = any(name in os.environ for name in WAITING)
        if not chosen:
            os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
        try:
            yield
        finally:
            os.environ.update(removed)
            if not chosen:
                del os.environ["GOMP_SPINCOUNT"]


def requested_threads() -> int | None:
    """The number of threads that OMP_NUM_THREADS asks for, of which a list has one for each level of nesting."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isascii() and first.isdecimal() and int(first) > 0 else None


def unbound_cpus() -> frozenset[int]:
    """The logical processors of all places of the OpenMP runtimes in this process, if the environment binds threads.

    Another library's runtime, e.g. PyTorch's, binds the thread that loads it: that thread's affinity is one place then.
    """
    if not any(name in os.environ for name in BINDING):
        return frozenset()
    try:
        files = {line.rpartition(" ")[2] for line in Path("/proc/self/maps").read_text().splitlines()}
    except OSError:
        return frozenset()
    found: set[int] = set()
    for file in files:
        if "omp" in Path(file).name:
            found.update(_cpus_of_places(file))
    return frozenset(found)


def _cpus_of_places(file: str) -> Iterator[int]:
    try:
        runtime = ctypes.CDLL(file)
        places = runtime.omp_get_num_places()
    except (OSError, AttributeError):  # not an OpenMP runtime
        return
    for place in range(places):
        cpus = (ctypes.c_int * runtime.omp_get_place_num_procs(place))()
        runtime.omp_get_place_proc_ids(place, cpus)
        yield from cpus
